// What the leaves of both libraries ask of their tensors. LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "scalar.h"

namespace posgan_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The dtype of factors and sums: half precision accumulates in float32, float64 stays.
inline ScalarType arithmetic_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Null: there is none.
inline const void* data_of(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

// The stride of a dimension of one element means nothing.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d) || (a.size(d) > 1 && a.stride(d) != b.stride(d))) return false;
  }
  return true;
}

// Dense [N, C, H, W], the channels innermost.
inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (t.size(d) > 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// What tells the memory formats of [N, C, H, W] apart where a tensor may be of both: then it counts as NCHW.
inline bool channels_innermost(const Tensor& t) { return t.size(1) > 1 && t.stride(1) == 1 && !t.is_contiguous(); }

}  // namespace posgan_fast
