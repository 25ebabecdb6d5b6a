// Checks the tensors of prologue2d and makes the parameters of its kernels, for the native ops of both libraries.
#pragma once

#include "prologue2d.h"
#include "tensors.hpp"

namespace posgan_fast {

struct Prologue2dTensors {
  const Tensor& x;
  const std::optional<Tensor>&residual, &styles, &border, &columns, &rows;
  const Tensor& y;

  Prologue2dParams params(int64_t left, int64_t top, int64_t mode, bool concat, bool height_first) const {
    check_geometry(left, top, mode, concat);
    check_tensors();
    Prologue2dParams p{};
    p.n = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
    p.out_c = y.size(1), p.out_h = y.size(2), p.out_w = y.size(3);
    p.left = left, p.top = top;
    p.half = columns ? columns->size(0) : 0;
    p.border = Border(mode);
    p.concat = concat, p.height_first = height_first;
    p.channels_last = channels_innermost(y);
    STD_TORCH_CHECK(p.channels_last ? is_channels_last(y) : y.is_contiguous(),
                    "prologue2d: expected y dense, NCHW or channels_last");
    p.x = strides("x", x, p.channels_last);
    if (residual) p.residual = strides("residual", *residual, p.channels_last);
    if (columns) {
      p.columns = table("columns", *columns, p.channels_last);
      p.rows = table("rows", *rows, p.channels_last);
    }
    if (border && border->dim() == 3) {
      p.ring = Ring::stored_alone(p.h, p.w, border->stride(0), border->stride(1), border->stride(2));
    } else if (border) {
      const Tensor& b = *border;
      p.ring = Ring::in_map(b.size(2), b.size(3), p.h, p.w, b.stride(0), b.stride(1), b.stride(2), b.stride(3));
    }
    return p;
  }

 private:
  void check_geometry(int64_t left, int64_t top, int64_t mode, bool concat) const {
    STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && x.size(0) == y.size(0) && x.size(2) > 0 && x.size(3) > 0,
                    "prologue2d: expected x and y of shape [N, C, H, W] with the same N");
    STD_TORCH_CHECK(columns.has_value() == rows.has_value() && (columns.has_value() || !concat),
                    "prologue2d: expected columns and rows together, and both to concatenate them");
    const int64_t c = y.size(1), h = x.size(2), w = x.size(3), encoded = columns ? 2 * columns->size(0) : 0;
    STD_TORCH_CHECK(concat ? c == x.size(1) + encoded : c == x.size(1) && (!columns || c == encoded),
                    "prologue2d: expected y with the channels of x and of the encoding, got ", c);
    const int64_t right = y.size(3) - w - left, bottom = y.size(2) - h - top;
    STD_TORCH_CHECK(left >= 0 && right >= 0 && top >= 0 && bottom >= 0, "prologue2d: expected no negative padding");
    STD_TORCH_CHECK(mode >= 0 && mode <= 2, "prologue2d: expected mode 0, 1 or 2, got ", mode);
    STD_TORCH_CHECK(Border(mode) != Border::kReflect || (left < w && right < w && top < h && bottom < h),
                    "prologue2d: expected less padding than pixels to reflect");
    STD_TORCH_CHECK((Border(mode) == Border::kInstance) == border.has_value(),
                    "prologue2d: expected border in mode 2, and there alone");
    STD_TORCH_CHECK(!border || (left == 1 && right == 1 && top == 1 && bottom == 1),
                    "prologue2d: expected padding 1 around a map");
  }

  void check_tensors() const {
    const ScalarType dtype = x.scalar_type(), acc = acc_dtype(dtype);
    const int64_t n = x.size(0), c = y.size(1), h = x.size(2), w = x.size(3), half = columns ? columns->size(0) : 0;
    check_like("prologue2d", "y", y, x);
    STD_TORCH_CHECK(matches("residual", residual, dtype, {n, c, h, w}),
                    "prologue2d: expected residual [N, C', H, W] like x");
    STD_TORCH_CHECK(matches("styles", styles, acc, {n, c}) && (!styles || styles->is_contiguous()),
                    "prologue2d: expected dense styles [N, C'] of dtype float32, or float64 for a float64 x");
    STD_TORCH_CHECK(matches("columns", columns, acc, {half, w}) && matches("rows", rows, acc, {half, h}),
                    "prologue2d: expected columns [d, W] and rows [d, H] of dtype float32, or float64 for a float64 x");
    if (!border) return;
    const Tensor& b = *border;
    check_device("prologue2d", "border", b, x);
    STD_TORCH_CHECK(b.scalar_type() == dtype && b.dim() >= 3 && b.size(0) == n && b.size(1) == c,
                    "prologue2d: expected border [N, C', ...] of the dtype of x");
    STD_TORCH_CHECK(
        b.dim() == 3 ? b.size(2) == Ring::size(h, w) : b.dim() == 4 && b.size(2) >= h + 2 && b.size(3) >= w + 2,
        "prologue2d: expected border to hold a ring around ", h, " x ", w, " pixels");
  }

  bool matches(const char* name, const std::optional<Tensor>& t, ScalarType dtype,
               std::initializer_list<int64_t> sizes) const {
    if (!t) return true;
    check_device("prologue2d", name, *t, x);
    bool same = t->scalar_type() == dtype && t->dim() == int64_t(sizes.size());
    int64_t d = 0;
    for (const int64_t size : sizes) same = same && t->size(d++) == size;
    return same;
  }

  static Prologue2dParams::Strides strides(const char* name, const Tensor& t, bool channels_last) {
    const int64_t unit = channels_last ? 1 : 3;
    STD_TORCH_CHECK(t.numel() == 0 || has_stride(t, unit, 1), "prologue2d: expected the innermost dimension of ", name,
                    " dense, as that of y");
    return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
  }

  static Prologue2dParams::TableStrides table(const char* name, const Tensor& t, bool channels_last) {
    const int64_t unit = channels_last ? 0 : 1;
    STD_TORCH_CHECK(has_stride(t, unit, 1), "prologue2d: expected ", name, " dense along the innermost dimension of y");
    return {t.stride(0), t.stride(1)};
  }
};

}  // namespace posgan_fast
