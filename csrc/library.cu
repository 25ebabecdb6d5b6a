// What the CUDA library exports beside its native ops.
#include "launch_tables.cuh"

#define PF_EXPORT extern "C" __attribute__((visibility("default")))

PF_EXPORT void posgan_fast_reread_cuda_table() { posgan_fast::reread_launch_overrides(); }

PF_EXPORT const char* posgan_fast_cuda_table() {
  static const std::string text = posgan_fast::describe_launch_tables();
  return text.c_str();
}
