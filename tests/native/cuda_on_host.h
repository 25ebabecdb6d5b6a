// Runs CUDA kernel bodies on the host: one std::thread per thread of a block, a barrier for __syncthreads, blocks one
// after another. Shared memory is a heap block of exactly the requested size, so that AddressSanitizer sees its ends,
// and holds NaN before every block, so that reading unwritten memory shows in the result. Asynchronous copies happen
// when they are waited for, the latest moment that the device may choose.
#pragma once

#include <pthread.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#define __global__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace posgan_fast::host {

struct FreeDeleter {
  void operator()(unsigned char* p) const { std::free(p); }
};

// The waiting threads of std::barrier spin, which costs many times the work where other processes want the cores.
class Barrier {
 public:
  explicit Barrier(unsigned threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void arrive_and_wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

// The block that runs.
struct Block {
  dim3 grid, size, index;
  std::unique_ptr<unsigned char, FreeDeleter> shared;
  std::unique_ptr<Barrier> barrier;
};

inline Block& block() {
  static Block current;
  return current;
}

inline thread_local dim3 thread_index;
inline thread_local int barriers_passed;

// The __syncthreads of each block to leave out, or a negative number: a test shows that a missing barrier is found.
inline int skipped_barrier = -1;

inline void sync_threads() {
  if (barriers_passed++ != skipped_barrier) block().barrier->arrive_and_wait();
}

inline void require_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
  std::fprintf(stderr, "an access of %zu bytes is misaligned: %p\n", bytes, p);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

inline thread_local std::vector<std::vector<Copy>> copy_groups(1);  // the last one is open

inline void copy_async(void* to, const void* from, size_t bytes) {
  require_aligned(to, bytes);
  require_aligned(from, bytes);
  copy_groups.back().push_back({to, from, bytes});
}

inline void copy_commit() { copy_groups.emplace_back(); }

inline void copy_wait(size_t pending) {
  while (copy_groups.size() > pending + 1) {
    for (const Copy& copy : copy_groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    copy_groups.erase(copy_groups.begin());
  }
}

template <typename Kernel, typename... Args>
void launch(dim3 grid, dim3 size, size_t shared_bytes, Kernel kernel, const Args&... args) {
  const unsigned threads = size.x * size.y * size.z;
  Block& b = block();
  b.grid = grid;
  b.size = size;
  const size_t aligned_bytes = (shared_bytes + 15) / 16 * 16;  // aligned_alloc wants a multiple
  b.shared.reset(static_cast<unsigned char*>(std::aligned_alloc(16, aligned_bytes == 0 ? 16 : aligned_bytes)));
  b.barrier = std::make_unique<Barrier>(threads);
  auto run = [&](unsigned t) {
    thread_index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
    const unsigned blocks = grid.x * grid.y * grid.z;
    for (unsigned i = 0; i < blocks; ++i) {
      if (t == 0) {
        b.index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
        std::memset(b.shared.get(), 0xff, aligned_bytes);
      }
      b.barrier->arrive_and_wait();
      barriers_passed = 0;
      kernel(args...);
      b.barrier->arrive_and_wait();
    }
  };
  std::vector<std::thread> pool;
  for (unsigned t = 1; t < threads; ++t) pool.emplace_back(run, t);
  run(0);
  for (std::thread& t : pool) t.join();
}

}  // namespace posgan_fast::host

#define threadIdx (::posgan_fast::host::thread_index)
#define blockIdx (::posgan_fast::host::block().index)
#define blockDim (::posgan_fast::host::block().size)
#define gridDim (::posgan_fast::host::block().grid)
inline void __syncthreads() { ::posgan_fast::host::sync_threads(); }
