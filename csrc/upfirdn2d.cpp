// upfirdn2d on the CPU, compiled once per instruction set (PF_ISA).
#include "upfirdn2d_planes.h"

namespace posgan_fast::PF_ISA {
namespace {

// Stores the sums of a row as they are.
template <typename T>
class StoreEpilogue {
 public:
  explicit StoreEpilogue(bool nontemporal) : nontemporal_(nontemporal) {}

  // The row pass writes the result itself where nothing has to be converted or stored past the caches.
  acc_t<T>* target(T* out, acc_t<T>* sums) const {
    if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
      if (!nontemporal_) return out;
    }
    return sums;
  }

  void operator()(const acc_t<T>* row, const OutputRow<T>& at, int64_t n) const {
    if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
      if (row == at.out) return;
    }
    store_row(at.out, row, n, nontemporal_);
  }

 private:
  bool nontemporal_;
};

template <typename T>
void compute_rows(const Upfirdn2dTask& task, int64_t begin, int64_t end) {
  StoreEpilogue<T> epilogue(task.nontemporal);
  resample<T>(task, begin, end, epilogue);
}

}  // namespace

void upfirdn2d(const Upfirdn2dTask& task, int64_t begin, int64_t end) {
  dispatch_dtype(task.dtype, [&](auto scalar) { compute_rows<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
