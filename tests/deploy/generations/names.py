"""Names that each generation of TensorRT's Python API has, for the classes that hfd-edge touches.

8.6: the sources of its Python bindings, python/src. 10.3: the 10.13 stubs without what came later, as far as
that is known; a name too few makes a test fail that need not, a name too many would hide a fault. 11: the
guide from 10 to 11 (removed APIs). RTX: `dir()` of TensorRT-RTX 1.7.1, compared with the installed one by a
test.
"""

from __future__ import annotations

Names = dict[str, frozenset[str]]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EXECUTION = words(
    """active_optimization_profile all_binding_shapes_specified debug_sync engine
    enqueue_emits_profile error_recorder execute_async_v3 execute_v2 get_input_consumed_event
    get_max_output_size get_output_allocator get_tensor_address get_tensor_shape get_tensor_strides
    infer_shapes name nvtx_verbosity persistent_cache_limit profiler report_to_profiler
    set_input_consumed_event set_input_shape set_optimization_profile_async set_output_allocator
    set_tensor_address temporary_allocator"""
)

V8_6: Names = {
    "module": words(
        """Builder BuilderFlag CalibrationAlgoType DataType DeviceType ErrorCode HardwareCompatibilityLevel
        IBuilderConfig ICudaEngine IExecutionContext IHostMemory IInt8Calibrator IInt8EntropyCalibrator
        IInt8EntropyCalibrator2 IInt8LegacyCalibrator IInt8MinMaxCalibrator ILayer ILogger
        INetworkDefinition IOptimizationProfile
        ITensor ITimingCache EngineInspector LayerInformationFormat LayerType Logger MemoryPoolType
        NetworkDefinitionCreationFlag OnnxParser ParserError PreviewFeature ProfilingVerbosity Runtime
        TensorIOMode __version__"""
    ),
    "NetworkDefinitionCreationFlag": words("EXPLICIT_BATCH EXPLICIT_PRECISION"),
    "BuilderFlag": words(
        """FP16 INT8 DEBUG GPU_FALLBACK REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS SAFETY_SCOPE
        OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS DIRECT_IO REJECT_EMPTY_ALGORITHMS
        ENABLE_TACTIC_HEURISTIC VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME FP8"""
    ),
    "ErrorCode": words(
        """SUCCESS INTERNAL_ERROR MEM_ALLOC_FAILED MODEL_DESERIALIZE_FAILED INVALID_VALUE INVALID_GRAPH
        INVALID_NODE UNSUPPORTED_GRAPH UNSUPPORTED_NODE"""
    ),
    "Builder": words(
        """build_engine build_serialized_network create_builder_config create_network
        create_optimization_profile error_recorder get_plugin_registry is_network_supported
        logger max_DLA_batch_size max_batch_size max_threads num_DLA_cores platform_has_fast_fp16
        platform_has_fast_int8 platform_has_tf32 reset"""
    ),
    "IBuilderConfig": words(
        """DLA_core add_optimization_profile algorithm_selector avg_timing_iterations
        builder_optimization_level can_run_on_DLA clear_flag clear_quantization_flag create_timing_cache
        default_device_type engine_capability flags get_calibration_profile get_device_type get_flag
        get_memory_pool_limit get_preview_feature get_quantization_flag get_tactic_sources get_timing_cache
        hardware_compatibility_level int8_calibrator is_device_type_set max_aux_streams max_workspace_size
        min_timing_iterations num_optimization_profiles plugins_to_serialize profile_stream
        profiling_verbosity quantization_flags reset reset_device_type set_calibration_profile
        set_device_type set_flag set_memory_pool_limit set_preview_feature set_quantization_flag
        set_tactic_sources set_timing_cache"""
    ),
    "INetworkDefinition": words(
        """error_recorder get_input get_layer get_output has_explicit_precision has_implicit_batch_dimension
        mark_output name num_inputs num_layers num_outputs remove_tensor set_weights_name unmark_output"""
    ),
    "OnnxParser": words(
        """clear_errors clear_flag flags get_error get_flag get_used_vc_plugin_libraries num_errors parse
        parse_from_file parse_with_weight_descriptors set_flag supports_model supports_operator"""
    ),
    "ParserError": words("code desc file func line node"),
    "ILayer": words(
        """get_input get_output get_output_type metadata name num_inputs num_outputs output_type_is_set
        precision precision_is_set reset_output_type reset_precision set_input set_output_type type"""
    ),
    "ITensor": words(
        """allowed_formats broadcast_across_batch dtype dynamic_range get_dimension_name is_execution_tensor
        is_network_input is_network_output is_shape_tensor location name reset_dynamic_range
        set_dimension_name set_dynamic_range shape"""
    ),
    "IOptimizationProfile": words("extra_memory_target get_shape get_shape_input set_shape set_shape_input"),
    "ITimingCache": words("combine reset serialize"),
    "Runtime": words(
        """DLA_core deserialize_cuda_engine engine_host_code_allowed error_recorder get_plugin_registry
        load_runtime logger max_threads num_DLA_cores temporary_directory tempfile_control_flags"""
    ),
    "ICudaEngine": words(
        """create_engine_inspector create_execution_context create_execution_context_without_device_memory
        device_memory_size engine_capability error_recorder get_tensor_dtype get_tensor_format
        get_tensor_mode get_tensor_name get_tensor_profile_shape get_tensor_shape name num_bindings
        num_io_tensors num_layers
        num_optimization_profiles profiling_verbosity refittable serialize tactic_sources"""
    ),
    "EngineInspector": words("error_recorder execution_context get_engine_information get_layer_information"),
    "IExecutionContext": _EXECUTION
    | words(
        """all_shape_inputs_specified execute execute_async execute_async_v2 get_binding_shape get_shape
        get_strides set_binding_shape set_shape_input"""
    ),
}

_NODE_NAMES = words("node_name node_operator local_function_stack local_function_stack_size")
_NODE_CODES = words(
    """UNSUPPORTED_NODE_ATTR UNSUPPORTED_NODE_DATATYPE UNSUPPORTED_NODE_DYNAMIC UNSUPPORTED_NODE_INPUT
    UNSUPPORTED_NODE_SHAPE REFIT_FAILED"""
)

V10_3: Names = {
    **V8_6,
    "module": V8_6["module"] | words("IProgressMonitor"),
    "NetworkDefinitionCreationFlag": words("EXPLICIT_BATCH STRONGLY_TYPED"),
    "BuilderFlag": V8_6["BuilderFlag"] - {"ENABLE_TACTIC_HEURISTIC"} | words("BF16 INT4 STRIP_PLAN"),
    "ErrorCode": V8_6["ErrorCode"] | _NODE_CODES,
    "Builder": V8_6["Builder"] - {"build_engine", "max_batch_size"},
    "IBuilderConfig": V8_6["IBuilderConfig"] - {"max_workspace_size", "min_timing_iterations"}
    | {"progress_monitor"},
    "INetworkDefinition": V8_6["INetworkDefinition"] - {"has_explicit_precision"} | {"flags", "get_flag"},
    "ParserError": V8_6["ParserError"] | _NODE_NAMES,
    "ITensor": V8_6["ITensor"] - {"is_execution_tensor"},
    "ICudaEngine": V8_6["ICudaEngine"] - {"num_bindings"} | {"device_memory_size_v2"},
    "IExecutionContext": _EXECUTION | words("all_shape_inputs_specified set_aux_streams set_device_memory"),
}

_CALIBRATION = words(
    """int8_calibrator set_calibration_profile get_calibration_profile set_quantization_flag
    get_quantization_flag quantization_flags clear_quantization_flag algorithm_selector"""
)
_WEAK_FLAGS = words(
    """FP16 INT8 FP8 BF16 INT4 OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS DIRECT_IO
    REJECT_EMPTY_ALGORITHMS"""
)
_WEAK_LAYER = words(
    "precision precision_is_set reset_precision set_output_type reset_output_type output_type_is_set"
)

V11: Names = {
    **V10_3,
    "module": frozenset(
        name for name in V10_3["module"] if "Calibrat" not in name and name != "CalibrationAlgoType"
    ),
    "NetworkDefinitionCreationFlag": words("STRONGLY_TYPED"),
    "BuilderFlag": V10_3["BuilderFlag"] - _WEAK_FLAGS,
    "Builder": frozenset(name for name in V10_3["Builder"] if not name.startswith("platform_has")),
    "IBuilderConfig": V10_3["IBuilderConfig"] - _CALIBRATION,
    "INetworkDefinition": V10_3["INetworkDefinition"] - {"has_implicit_batch_dimension"},
    "ILayer": V10_3["ILayer"] - _WEAK_LAYER,
    "ITensor": V10_3["ITensor"]
    - words("dynamic_range set_dynamic_range reset_dynamic_range broadcast_across_batch"),
    "ICudaEngine": V10_3["ICudaEngine"] - {"device_memory_size"},
    "IExecutionContext": V10_3["IExecutionContext"] - {"all_shape_inputs_specified"},
}

RTX: Names = {
    **V11,
    "module": V11["module"] - {"IInt8Calibrator"}
    | words(
        """ComputeCapability EngineValidity EngineInvalidityDiagnostics CudaGraphStrategy IRuntimeConfig
        IRuntimeCache"""
    ),
    "BuilderFlag": V11["BuilderFlag"] | {"DIRECT_IO"},
    "IBuilderConfig": V11["IBuilderConfig"]
    | words("num_compute_capabilities get_compute_capability set_compute_capability"),
    "ComputeCapability": words("NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121"),
    "EngineValidity": words("VALID SUBOPTIMAL INVALID"),
    "EngineInvalidityDiagnostics": words(
        """CUDA_ERROR INSUFFICIENT_GPU_MEMORY MALFORMED_ENGINE OLD_CUDA_DRIVER OLD_CUDA_RUNTIME
        UNSUPPORTED_CC VERSION_MISMATCH"""
    ),
    "OnnxParser": V11["OnnxParser"] - {"parse_with_weight_descriptors", "supports_model"},
    "ITensor": V11["ITensor"] - {"location"},
    "ICudaEngine": V11["ICudaEngine"] - {"create_execution_context_without_device_memory"}
    | {"create_runtime_config"},
    "IRuntimeConfig": words(
        """create_runtime_cache cuda_graph_strategy dynamic_shapes_kernel_specialization_strategy
        get_execution_context_allocation_strategy get_runtime_cache set_execution_context_allocation_strategy
        set_runtime_cache"""
    ),
    "IRuntimeCache": words("deserialize reset serialize"),
    "Runtime": V11["Runtime"] | {"get_engine_validity"},
}

GENERATIONS = {"8.6.2": V8_6, "10.3.0": V10_3, "11.4.1": V11, "1.7.1.116": RTX}
