"""Older forms of an ONNX model: a lower opset.

Devices read what their TensorRT reads: opset 13 on JetPack 4, 17 on JetPack 5 and 6.0. onnx's own version
converter has no way back for Resize (18 to 17) and others, so the few changes that matter are undone here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hfd_edge.deploy.graph import drop_unused_constants, onnx_package
from hfd_edge.errors import ExportError

LOWEST = 13
"""Oldest opset that is written: per-channel Q/DQ and Squeeze with axes as input begin there."""
_SAME_MEANING = frozenset(
    "Add BatchNormalization Cast Constant ConstantOfShape Conv ConvTranspose DequantizeLinear Div Equal "
    "Flatten GlobalAveragePool GridSample HardSigmoid HardSwish Identity InstanceNormalization LeakyRelu "
    "MaxPool Mul PRelu Pow QuantizeLinear ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize "
    "Round Shape Squeeze Sub Transpose Unsqueeze Where".split()
)
"""Operators whose versions from 13 on compute the same when attributes, inputs and types fit the old one.
From the operators' change log; an operator that is not named here is refused when its version changed."""
_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}
"""GridSample's modes before opset 20, when it took only images."""
_NEW_VALUES = {("Resize", "coordinate_transformation_mode", b"half_pixel_symmetric"): 19}
"""Values that an attribute of the same name did not take before an opset."""
_NAMED = 3


@dataclass(frozen=True)
class _Lowering:
    """What a rule needs to know besides the node: both definitions, and the model's constants."""

    new: Any
    old: Any
    constants: Mapping[str, Any]


def opset_of(model: Any) -> int:
    """Opset of the standard operators of a model."""
    return next(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))


def lower_opset(model: Any, opset: int) -> Any:
    """Write a model with an older opset, and the IR version that belongs to it; same names, same numbers.

    Args:
        model: `onnx.ModelProto`; it is not changed.
        opset: 13 or later. A model that is older already stays as it is: nothing is raised.
    Returns:
        The new model, checked in full.
    Raises:
        ExportError: an operator, attribute or type does not exist in that opset; the message names it.
    """
    onnx = onnx_package()
    if opset < LOWEST:
        raise ExportError(f"Opset is {opset}, but models are written for {LOWEST} and later. Choose one.")
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    current = opset_of(model)
    if opset >= current:
        return lowered
    domains = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if domains or model.functions:
        raise ExportError(
            f"The model uses operators of {', '.join(domains) or 'its own functions'}, which have no older "
            "opset. Give a model that hfd-edge exported."
        )
    types = _element_types(model)
    constants = {item.name: item for item in lowered.graph.initializer}
    for node in lowered.graph.node:
        _lower_node(node, constants, types, current=current, opset=opset, model=model)
    del lowered.opset_import[:]
    lowered.opset_import.append(onnx.helper.make_opsetid("", opset))
    lowered.ir_version = onnx.helper.find_min_ir_version_for(lowered.opset_import)
    drop_unused_constants(lowered)
    _check(lowered, f"The model lowered to opset {opset}")
    return lowered


def _lower_node(
    node: Any, constants: Mapping[str, Any], types: Mapping[str, str], *, current: int, opset: int, model: Any
) -> None:
    onnx = onnx_package()
    if any(item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for item in node.attribute):
        raise ExportError(f"{node.op_type} {node.name} holds a graph of its own, which cannot be lowered.")
    new = onnx.defs.get_schema(node.op_type, current)
    try:
        old = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        old = None
    if old is None or old.since_version > opset:
        raise ExportError(_missing_operator(model, node.op_type, opset))
    if old.since_version == new.since_version:
        return
    if node.op_type not in _SAME_MEANING:
        raise ExportError(
            f"{node.op_type} {node.name} changed between opset {opset} and {current} in a way that is not "
            f"known here. Use a target that takes opset {new.since_version}."
        )
    lowering = _Lowering(new, old, constants)
    rule = _RULES.get(node.op_type)
    if rule is not None:
        rule(node, lowering)
    _lower_attributes(node, lowering, opset)
    _check_fit(node, old, types, opset)


def _lower_grid_sample(node: Any, lowering: _Lowering) -> None:
    """Opset 20 renamed the modes; a missing attribute means the new definition's default."""
    if lowering.old.since_version >= 20:
        return
    attribute = next((item for item in node.attribute if item.name == "mode"), None)
    if attribute is None:
        attribute = node.attribute.add()
        attribute.CopyFrom(lowering.new.attributes["mode"].default_value)
    mode = attribute.s.decode()
    attribute.s = _GRID_MODES.get(mode, mode).encode()


def _lower_reshape(node: Any, lowering: _Lowering) -> None:
    """`allowzero` gives zeros in the shape another meaning: without zeros it says nothing."""
    if "allowzero" in lowering.old.attributes:
        return
    shape = lowering.constants.get(node.input[1])
    if shape is not None and onnx_package().numpy_helper.to_array(shape).all():
        _remove_attribute(node, "allowzero")


def _lower_reduction(node: Any, lowering: _Lowering) -> None:
    """Axes were an attribute before opset 18 (ReduceSum: 13)."""
    if "axes" not in lowering.old.attributes or len(node.input) < 2 or not node.input[1]:
        return
    axes = lowering.constants.get(node.input[1])
    if axes is not None:
        helper = onnx_package().helper
        values = [int(item) for item in onnx_package().numpy_helper.to_array(axes).ravel()]
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", values))


_RULES: Mapping[str, Callable[[Any, _Lowering], None]] = {
    "GridSample": _lower_grid_sample,
    "Reshape": _lower_reshape,
    "ReduceMax": _lower_reduction,
    "ReduceMean": _lower_reduction,
    "ReduceMin": _lower_reduction,
}


def _lower_attributes(node: Any, lowering: _Lowering, opset: int) -> None:
    """Drop attributes that the old definition lacks where they say what it always does."""
    helper = onnx_package().helper
    for attribute in list(node.attribute):
        value = helper.get_attribute_value(attribute)
        since = _NEW_VALUES.get((node.op_type, attribute.name, value)) if isinstance(value, bytes) else None
        if attribute.name in lowering.old.attributes and (since is None or since <= opset):
            continue
        default = lowering.new.attributes[attribute.name].default_value
        if since or not default.name or value != helper.get_attribute_value(default):
            raise ExportError(
                f"{node.op_type} {node.name} has {attribute.name} = {value!r}, which opset {opset} does not "
                f"know. Use a target that takes opset {lowering.new.since_version}."
            )
        _remove_attribute(node, attribute.name)


def _check_fit(node: Any, old: Any, types: Mapping[str, str], opset: int) -> None:
    """Check the number and the element types of inputs and outputs against the old definition."""
    if not (old.min_input <= len(node.input) <= old.max_input and len(node.output) <= old.max_output):
        raise ExportError(
            f"{node.op_type} {node.name} has {len(node.input)} inputs and {len(node.output)} outputs, opset "
            f"{opset} allows {old.max_input} and {old.max_output}. Use a target that takes a newer opset."
        )
    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in old.type_constraints}
    for names, formal in ((node.input, old.inputs), (node.output, old.outputs)):
        for index, name in enumerate(names):
            parameter = formal[min(index, len(formal) - 1)]
            found = types.get(name)
            wanted = allowed.get(parameter.type_str, {parameter.type_str})
            if name and found is not None and found not in wanted:
                raise ExportError(
                    f"{node.op_type} {node.name} has {name} as {found}, which opset {opset} does not allow "
                    "there. Use the fp32 model, or a target that takes a newer opset."
                )


def _missing_operator(model: Any, operator: str, opset: int) -> str:
    names = [node.name for node in model.graph.node if node.op_type == operator]
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    first = min(
        schema.since_version
        for schema in onnx_package().defs.get_all_schemas_with_history()
        if schema.name == operator and schema.domain == ""
    )
    fix = (
        "Export the run again with --warp gather"
        if operator == "GridSample"
        else "Use a target that takes a newer opset"
    )
    return f"{operator} exists from opset {first} on, but opset {opset} is asked for: {shown}. {fix}."


def _element_types(model: Any) -> dict[str, str]:
    """Tensor name to its type as the operators' definitions write it, "tensor(float)"."""
    onnx = onnx_package()
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {item.name: item.data_type for item in inferred.graph.initializer}
    for item in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        kinds[item.name] = item.type.tensor_type.elem_type
    names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    return {name: f"tensor({names[kind]})" for name, kind in kinds.items() if kind}


def _remove_attribute(node: Any, name: str) -> None:
    for item in [item for item in node.attribute if item.name == name]:
        node.attribute.remove(item)


def _check(model: Any, what: str) -> None:
    try:
        onnx_package().checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's classes have no common base
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"{what} is not valid: {first}. Give a model that hfd-edge exported.") from error
