// bias_act on the CPU: checks of memory, the task.
#include "library.hpp"

namespace posgan_fast::cpu {
namespace {

void bias_act(const Tensor& x, const std::optional<Tensor>& b, const std::optional<Tensor>& ref,
              const std::optional<Tensor>& dy, const Tensor& out, int64_t step, int64_t order, int64_t act,
              double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(order >= 0 && order <= 2 && is_act(act), "bias_act: order must be 0..2 and act 1..9");
  STD_TORCH_CHECK(order < 1 || ref.has_value(), "bias_act: order 1 and 2 need ref");
  STD_TORCH_CHECK(order < 2 || dy.has_value(), "bias_act: order 2 needs dy");
  STD_TORCH_CHECK(step >= 1, "bias_act: step must be at least 1");
  auto matches = [&](const Tensor& t) { return t.numel() == x.numel() && t.scalar_type() == x.scalar_type(); };
  STD_TORCH_CHECK(matches(out) && (!ref || matches(*ref)) && (!dy || matches(*dy)),
                  "bias_act: all tensors must have the size and dtype of x");
  STD_TORCH_CHECK(!b || (b->scalar_type() == x.scalar_type() && b->is_contiguous() && b->numel() > 0),
                  "bias_act: b must be dense and of the dtype of x");
  BiasActTask task;
  task.type = type_of(x);
  task.params = {x.numel(), step, b ? b->numel() : 0, alpha, gain, clamp};
  task.act = Act(act);
  task.order = int(order);
  task.x = x.const_data_ptr();
  task.b = data_of(b);
  task.ref = order > 0 ? ref->const_data_ptr() : task.x;
  task.dy = order > 1 ? dy->const_data_ptr() : task.x;
  task.out = out.mutable_data_ptr();
  task.stream = prepare_result(task.out, task.x, x.numel() * bytes_of(task.type));
  spread(kernels().bias_act, task, x.numel(), int64_t(1) << 15);
}

}  // namespace

Leaf* const bias_act_leaf = TORCH_BOX(&bias_act);

}  // namespace posgan_fast::cpu
