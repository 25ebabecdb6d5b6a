// Checks of tensors that the native ops of both libraries share, on LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "scalar.h"

namespace posgan_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The dtype of acc_t, which factors have.
inline ScalarType acc_dtype(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline const void* data_or_null(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }
inline void* writable_or_null(const std::optional<Tensor>& t) { return t ? t->mutable_data_ptr() : nullptr; }

inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index(), op, ": expected ", name,
                  " on the device of x");
}

inline void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  check_device(op, name, t, x);
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": expected ", name, " of the dtype of x");
}

// torch leaves any stride in a dimension of one element, where it means nothing.
inline int64_t stride_of(const Tensor& t, int64_t dim, int64_t otherwise) {
  return t.size(dim) <= 1 ? otherwise : t.stride(dim);
}
inline bool has_stride(const Tensor& t, int64_t dim, int64_t stride) { return stride_of(t, dim, stride) == stride; }

inline bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d) || !has_stride(a, d, b.stride(d))) return false;
  }
  return true;
}

// Whether [N, C, H, W] is dense in channels_last.
inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (!has_stride(t, d, expected)) return false;
    expected *= t.size(d);
  }
  return true;
}

// Whether the channels of [N, C, H, W] are innermost. A tensor that is dense in both memory formats counts as NCHW.
inline bool channels_innermost(const Tensor& t) { return t.size(1) > 1 && t.stride(1) == 1 && !t.is_contiguous(); }

}  // namespace posgan_fast
