// upfirdn2d on the CPU. Compiled once per instruction set (PF_ISA).
#include "upfirdn2d_rows.h"

namespace posgan_fast::PF_ISA {
namespace {

template <typename T>
class StoreRow {
 public:
  explicit StoreRow(bool stream) : stream_(stream) {}

  // Where nothing has to be converted or streamed, the row pass writes the result itself.
  acc_t<T>* target(T* out, acc_t<T>* sums) const {
    if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
      if (!stream_) return out;
    }
    return sums;
  }

  void operator()(const acc_t<T>* row, const OutputRow<T>& at, int64_t n) const {
    if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
      if (row == at.out) return;
    }
    store_row(at.out, row, n, stream_);
  }

 private:
  bool stream_;
};

template <typename T>
void rows(const Upfirdn2dTask& task, int64_t begin, int64_t end) {
  StoreRow<T> finish(task.stream);
  resample_rows<T>(task, begin, end, finish);
}

}  // namespace

void upfirdn2d(const Upfirdn2dTask& task, int64_t begin, int64_t end) {
  with_scalar(task.type, [&](auto scalar) { rows<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
