// The native op bias_act of the CPU library.
#include "bias_act_tensors.hpp"
#include "library.hpp"

namespace posgan_fast::cpu {
namespace {

void bias_act(const Tensor& x, const std::optional<Tensor>& b, const std::optional<Tensor>& ref,
              const std::optional<Tensor>& dy, const Tensor& out, int64_t step, int64_t grad, int64_t act, double alpha,
              double gain, double clamp) {
  BiasActTask task;
  task.params = BiasActTensors{x, b, ref, dy, out}.params(step, grad, act, alpha, gain, clamp);
  task.dtype = dtype_of(x);
  task.act = Act(act);
  task.grad = int(grad);
  task.x = x.const_data_ptr();
  task.b = data_or_null(b);
  task.ref = ref ? ref->const_data_ptr() : task.x;
  task.dy = dy ? dy->const_data_ptr() : task.x;
  task.out = out.mutable_data_ptr();
  task.nontemporal = prepare_result(task.out, task.x, x.numel() * itemsize(task.dtype));
  parallel_for(kernels().bias_act, task, x.numel(), int64_t(1) << 15);
}

}  // namespace

BoxedOp* const bias_act_boxed = TORCH_BOX(&bias_act);

}  // namespace posgan_fast::cpu
