// The native op prologue2d of the CPU library.
#include "library.hpp"
#include "prologue2d_tensors.hpp"

namespace posgan_fast::cpu {
namespace {

void prologue2d(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& styles,
                const std::optional<Tensor>& border, const std::optional<Tensor>& columns,
                const std::optional<Tensor>& rows, const Tensor& y, int64_t left, int64_t top, int64_t mode,
                bool concat, bool height_first) {
  Prologue2dTask task;
  task.params =
      Prologue2dTensors{x, residual, styles, border, columns, rows, y}.params(left, top, mode, concat, height_first);
  task.dtype = dtype_of(x);
  task.x = x.const_data_ptr();
  task.residual = data_or_null(residual);
  task.border = data_or_null(border);
  task.styles = data_or_null(styles);
  task.columns = data_or_null(columns);
  task.rows = data_or_null(rows);
  task.y = y.mutable_data_ptr();
  task.nontemporal = prepare_result(task.y, task.x, y.numel() * itemsize(task.dtype));
  const Prologue2dParams& p = task.params;
  const int64_t length = p.out_w * (p.channels_last ? p.out_c : 1);
  // A row costs about as much as 32 values of it.
  if (length > 0) parallel_for(kernels().prologue2d, task, y.numel() / length, (int64_t(1) << 15) / (32 + length));
}

}  // namespace

BoxedOp* const prologue2d_boxed = TORCH_BOX(&prologue2d);

}  // namespace posgan_fast::cpu
