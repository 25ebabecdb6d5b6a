"""The record of an op has the arguments of its schema as fields, in order: torch hands them over by position."""

from __future__ import annotations

import pytest
import torch

from posgan_fast.ops import bias_act, epilogue2d, modulated_conv2d, prologue2d, upfirdn2d
from posgan_fast.ops.bias_act import grad
from posgan_fast.ops.common.records import Activation, Resample
from posgan_fast.ops.conv2d import convolution
from posgan_fast.ops.epilogue2d import backward

RECORDS = {
    "bias_act": bias_act.Call,
    "bias_act_": bias_act.Call,
    "bias_act_grad": grad.GradCall,
    "bias_act_grad2": grad.Grad2Call,
    "epilogue2d": epilogue2d.Call,
    "epilogue2d_": epilogue2d.InPlaceCall,
    "epilogue2d_backward": backward.Call,
    "epilogue2d_product": backward.ProductCall,
    "modulated_conv2d": modulated_conv2d.Call,
    "prologue2d": prologue2d.Call,
    "upfirdn2d": upfirdn2d.Call,
    "winograd3x3": convolution.Call,
    "winograd3x3_gradient": convolution.GradientCall,
}


@pytest.mark.parametrize("name", RECORDS)
def test_fields_are_the_arguments_of_the_schema(name):
    schema = getattr(torch.ops.posgan_fast, name).default._schema
    assert RECORDS[name]._fields == tuple(argument.name for argument in schema.arguments)


def test_every_op_has_a_record():
    names = {name.removeprefix("posgan_fast::") for name in torch._C._dispatch_get_all_op_names()}
    assert {name for name in names if "::" not in name and hasattr(torch.ops.posgan_fast, name)} == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_shared_records_stand_in_the_fields_in_their_order(name):
    """Calls are built from them by position."""
    fields = RECORDS[name]._fields
    for part in (Activation, Resample):
        wanted = ["filter_gain" if field == "gain" and "filter_gain" in fields else field for field in part._fields]
        wanted = list(part._fields) if part is Activation else wanted
        if set(wanted) <= set(fields):
            first = fields.index(wanted[0])
            assert list(fields[first : first + len(wanted)]) == wanted
