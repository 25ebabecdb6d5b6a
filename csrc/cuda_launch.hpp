// Launches CUDA kernels on torch's current stream.
//
// The library may be compiled against a CPU build of torch, so nothing here needs libtorch_cuda at link time: the first
// launch looks up the one function that it calls, in the libtorch_cuda that torch loaded. The CUDA runtime is linked
// statically. Linked dynamically, this library would load beside one major version of torch's libcudart only; a static
// runtime meets torch's in the driver, where both use the device's primary context and the same stream handles.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "tensors.hpp"

namespace posgan_fast {

inline void check_cuda(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

inline cudaStream_t current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    for (const char* name : {"libtorch_cuda.so", "libtorch.so"}) {
      void* const library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
      void* const symbol = library != nullptr ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
      if (symbol != nullptr) return reinterpret_cast<Getter>(symbol);
    }
    return Getter(nullptr);
  }();
  STD_TORCH_CHECK(getter != nullptr, "posgan_fast: the loaded torch has no CUDA support (no libtorch_cuda)");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "posgan_fast: no current CUDA stream on device ", device);
  return static_cast<cudaStream_t>(stream);
}

// Makes a device current for torch's runtime and for the one linked in here, whose current device is another variable.
class CudaDeviceGuard {
 public:
  explicit CudaDeviceGuard(int32_t device) : guard_(device), device_(device) {
    check_cuda(cudaSetDevice(device), "posgan_fast: cudaSetDevice");
  }

  // The compute capability, 90 for 9.0.
  int sm() const {
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), "posgan_fast: device");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_), "posgan_fast: device");
    return 10 * major + minor;
  }

  template <typename Kernel, typename... Args>
  void launch(dim3 grid, dim3 block, size_t shared_bytes, Kernel kernel, const Args&... args) const {
    kernel<<<grid, block, shared_bytes, current_stream(device_)>>>(args...);
    check_cuda(cudaGetLastError(), "posgan_fast: kernel launch");
  }

  // Launches a one-dimensional grid over numel elements.
  template <typename Kernel, typename... Args>
  void launch_elementwise(const char* op, int64_t numel, int threads, int64_t blocks, Kernel kernel,
                          const Args&... args) const {
    STD_TORCH_CHECK(blocks < (int64_t(1) << 31), op, ": expected fewer elements than ", numel);
    launch(dim3(unsigned(blocks)), dim3(threads), 0, kernel, args...);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
};

// Calls body(T{}) with the storage type of a dtype.
template <typename Body>
void dispatch_dtype(const char* op, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    default:
      STD_TORCH_CHECK(false, op, ": expected x of dtype float16, bfloat16, float32 or float64");
  }
}

}  // namespace posgan_fast
