// prologue2d on the CPU: checks of memory, the task.
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
  task.type = type_of(x);
  task.x = x.const_data_ptr();
  task.residual = data_of(residual);
  task.border = data_of(border);
  task.styles = data_of(styles);
  task.columns = data_of(columns);
  task.rows = data_of(rows);
  task.y = y.mutable_data_ptr();
  task.stream = prepare_result(task.y, task.x, y.numel() * bytes_of(task.type));
  const Prologue2dParams& p = task.params;
  const int64_t length = p.out_w * (p.channels_last ? p.out_c : 1);
  // A row costs about as much as 32 values of it.
  if (length > 0) spread(kernels().prologue2d, task, y.numel() / length, (int64_t(1) << 15) / (32 + length));
}

}  // namespace

Leaf* const prologue2d_leaf = TORCH_BOX(&prologue2d);

}  // namespace posgan_fast::cpu
