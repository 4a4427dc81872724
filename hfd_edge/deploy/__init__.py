"""From trained weights to what runs on devices.

| work | modules |
|---|---|
| run to bundle | export, onnx_export, graph |
| calibration | tiles, descriptors, selection, calibration (histograms), record, cache (TensorRT's form) |
| variants | precision (placement), qdq and half (graph surgery), quantize, qat (learnt ranges) |
| accuracy of variants | scoring, sensitivity, gate |
| models for devices | opset (older opsets), shapes (sizes, MACs, memory) |
| engines | engine, compiler, monitor, timing, inspector, build; torch_tensorrt, torch_program |
| devices | targets, preflight, checks, dla; plan, trtexec, kit |
"""
