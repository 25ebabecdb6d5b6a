// prologue2d on the CPU. y is dense, so the rows of a thread are one stream: whatever they consist of is laid out in a
// buffer and leaves it in whole chunks. Compiled once per instruction set (PF_ISA).
#include <utility>

#include "cpu_kernels.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kChunk = 1024;
constexpr int kNarrow = 64;  // channels below which pixels are too short for a loop of their own

// Consecutive values of y on their way to memory.
template <typename T>
class Output {
 public:
  using A = acc_t<T>;

  Output(T* out, bool stream) : out_(out), stream_(stream) {}
  ~Output() { flush(); }

  void put(A value) {
    values_[held_++] = value;
    if (held_ == kChunk) flush();
  }

  // fill(i, count, to) writes values i, i + 1, ... of n.
  template <typename Fill>
  void put(int64_t n, const Fill& fill) {
    for (int64_t i = 0; i < n;) {
      const int count = int(n - i < kChunk - held_ ? n - i : kChunk - held_);
      fill(i, count, values_ + held_);
      held_ += count;
      i += count;
      if (held_ == kChunk) flush();
    }
  }

  void put_zeros(int64_t n) {
    put(n, [](int64_t, int count, A* to) { std::memset(to, 0, size_t(count) * sizeof(A)); });
  }

 private:
  void flush() {
    store_row(out_, values_, held_, stream_);
    out_ += held_;
    held_ = 0;
  }

  T* out_;
  bool stream_;
  int held_ = 0;
  A values_[kChunk];
};

// Consecutive values of z. Null: zero, the same encoding and the same style for all, no residual.
template <typename T>
struct Run {
  using A = acc_t<T>;
  using Fill = void (*)(const Run&, int64_t, int, A*);

  const T* x = nullptr;
  const A* encoding = nullptr;
  const A* styles = nullptr;
  const T* residual = nullptr;
  A same_encoding = 0, same_style = 1;
  Fill fill = nullptr;

  void operator()(int64_t i, int count, A* to) const { fill(*this, i, count, to); }

  A one(int64_t i) const {
    A value;
    fill(*this, i, 1, &value);
    return value;
  }

  void choose() { fill = choose(std::make_index_sequence<16>()); }

 private:
  template <typename V>
  static const V* at(const V* values, int64_t i) {
    return values == nullptr ? nullptr : values + i;
  }

  template <size_t kGiven>
  static void span(const Run& run, int64_t first, int count, A* __restrict to) {
    const T *x = at(run.x, first), *residual = at(run.residual, first);
    const A *encoding = at(run.encoding, first), *styles = at(run.styles, first);
    const A same_encoding = run.same_encoding, same_style = run.same_style;
    for (int i = 0; i < count; ++i) {
      A z = (kGiven & 2) != 0 ? encoding[i] : same_encoding;
      if constexpr ((kGiven & 1) != 0) z += load(x[i]);
      z *= (kGiven & 4) != 0 ? styles[i] : same_style;
      if constexpr ((kGiven & 8) != 0) z += load(residual[i]);
      to[i] = z;
    }
  }

  template <size_t... kGiven>
  Fill choose(std::index_sequence<kGiven...>) const {
    static constexpr Fill spans[] = {&span<kGiven>...};
    return spans[(x ? 1 : 0) | (encoding ? 2 : 0) | (styles ? 4 : 0) | (residual ? 8 : 0)];
  }
};

template <typename T>
class Rows {
 public:
  using A = acc_t<T>;

  explicit Rows(const Prologue2dTask& task)
      : p_(task.params),
        x_(static_cast<const T*>(task.x)),
        residual_(static_cast<const T*>(task.residual)),
        border_(static_cast<const T*>(task.border)),
        styles_(static_cast<const A*>(task.styles)),
        columns_(static_cast<const A*>(task.columns)),
        rows_(static_cast<const A*>(task.rows)) {
    const bool dense = p_.x.w == p_.c && (residual_ == nullptr || p_.residual.w == p_.c);
    flat_ = p_.half == 0 && dense && (styles_ == nullptr || p_.c < kNarrow);
  }

  // One row of one channel.
  void of_plane(int64_t n, int64_t c, int64_t oy, Output<T>& out) {
    const int64_t i = source_place(p_.border, oy - p_.top, p_.h);
    const T* const ring = border_ + n * p_.ring.stride_n + c * p_.ring.stride_c;
    if (i < 0 && p_.border == Border::kZeros) return out.put_zeros(p_.out_w);
    if (i < 0) {
      const RingSide& side = oy == 0 ? p_.ring.top : p_.ring.bottom;
      return out.put(p_.out_w, [&](int64_t first, int count, A* to) {
        const T* from = ring + side.offset + first * side.step;
        for (int k = 0; k < count; ++k) to[k] = load(from[k * side.step]);
      });
    }
    const EncodedChannel e = encoded_channel(p_, c);
    Run<T> run;
    if (c < p_.c) run.x = x_ + n * p_.x.n + c * p_.x.c + i * p_.x.h;
    if (e.table == Encoding::kColumns) run.encoding = columns_ + e.k * p_.columns.channel;
    if (e.table == Encoding::kRows) run.same_encoding = rows_[e.k * p_.rows.channel + i * p_.rows.place];
    if (styles_ != nullptr) run.same_style = styles_[n * p_.out_c + c];
    if (residual_ != nullptr) {
      run.residual = residual_ + n * p_.residual.n + c * p_.residual.c + i * p_.residual.h;
    }
    run.choose();
    const auto edge = [&](int64_t j) {
      if (p_.border == Border::kZeros) return A(0);
      if (p_.border == Border::kReflect) return run.one(source_place(p_.border, j, p_.w));
      return A(load(ring[ring_offset(p_.ring, oy, j + 1, p_.h)]));
    };
    for (int64_t j = -p_.left; j < 0; ++j) out.put(edge(j));
    out.put(p_.w, run);
    for (int64_t j = p_.w; j < p_.out_w - p_.left; ++j) out.put(edge(j));
  }

  // One row of pixels of all channels.
  void of_pixels(int64_t n, int64_t oy, Output<T>& out) {
    const int64_t i = source_place(p_.border, oy - p_.top, p_.h);
    if (i < 0 && p_.border == Border::kZeros) return out.put_zeros(p_.out_w * p_.out_c);
    const auto edge = [&](int64_t j) {
      if (p_.border == Border::kZeros) return out.put_zeros(p_.out_c);
      if (p_.border == Border::kReflect) return pixel(n, i, source_place(p_.border, j, p_.w), out);
      const T* ring = border_ + n * p_.ring.stride_n + ring_offset(p_.ring, oy, j + 1, p_.h);
      out.put(p_.out_c, [&](int64_t first, int count, A* to) {
        for (int k = 0; k < count; ++k) to[k] = load(ring[(first + k) * p_.ring.stride_c]);
      });
    };
    if (i < 0) {
      for (int64_t j = -1; j < p_.w + 1; ++j) edge(j);
      return;
    }
    for (int64_t j = -p_.left; j < 0; ++j) edge(j);
    if (flat_) {
      flat_row(n, i, out);
    } else {
      for (int64_t j = 0; j < p_.w; ++j) pixel(n, i, j, out);
    }
    for (int64_t j = p_.w; j < p_.out_w - p_.left; ++j) edge(j);
  }

 private:
  // The channels of a pixel in up to three runs, each with one source.
  void pixel(int64_t n, int64_t i, int64_t j, Output<T>& out) const {
    for (int64_t c = 0; c < p_.out_c;) {
      const EncodedChannel e = encoded_channel(p_, c);
      const int64_t length = e.table == Encoding::kNone ? p_.c : p_.half;
      Run<T> run;
      if (c < p_.c) run.x = x_ + n * p_.x.n + i * p_.x.h + j * p_.x.w + c;
      if (e.table == Encoding::kColumns) run.encoding = columns_ + j * p_.columns.place;
      if (e.table == Encoding::kRows) run.encoding = rows_ + i * p_.rows.place;
      if (styles_ != nullptr) run.styles = styles_ + n * p_.out_c + c;
      if (residual_ != nullptr) {
        run.residual = residual_ + n * p_.residual.n + i * p_.residual.h + j * p_.residual.w + c;
      }
      run.choose();
      out.put(length, run);
      c += length;
    }
  }

  // All pixels as one run, the styles repeated side by side.
  void flat_row(int64_t n, int64_t i, Output<T>& out) {
    Run<T> run;
    run.x = x_ + n * p_.x.n + i * p_.x.h;
    if (residual_ != nullptr) run.residual = residual_ + n * p_.residual.n + i * p_.residual.h;
    if (styles_ == nullptr) {
      run.choose();
      return out.put(p_.w * p_.c, run);
    }
    if (tiled_ != n) {
      for (int64_t k = 0; k < kChunk + kNarrow; ++k) tile_[k] = k < p_.c ? styles_[n * p_.c + k] : tile_[k - p_.c];
      tiled_ = n;
    }
    run.styles = tile_;
    run.choose();
    out.put(p_.w * p_.c, [&](int64_t first, int count, A* to) {
      Run<T> part = run;
      part.x += first;
      if (part.residual != nullptr) part.residual += first;
      part.styles += first % p_.c;
      part(0, count, to);
    });
  }

  const Prologue2dParams& p_;
  const T *x_, *residual_, *border_;
  const A *styles_, *columns_, *rows_;
  bool flat_;
  int64_t tiled_ = -1;  // the sample whose styles are in tile_
  A tile_[kChunk + kNarrow];
};

template <typename T>
void rows(const Prologue2dTask& task, int64_t begin, int64_t end) {
  const Prologue2dParams& p = task.params;
  const int64_t planes = p.channels_last ? 1 : p.out_c;
  const int64_t length = p.out_w * (p.channels_last ? p.out_c : 1);
  int64_t oy = begin % p.out_h, c = begin / p.out_h % planes, n = begin / p.out_h / planes;
  Rows<T> source(task);
  Output<T> out(static_cast<T*>(task.y) + begin * length, task.stream);
  for (int64_t row = begin; row < end; ++row) {
    if (p.channels_last) {
      source.of_pixels(n, oy, out);
    } else {
      source.of_plane(n, c, oy, out);
    }
    if (++oy < p.out_h) continue;
    oy = 0;
    if (++c < planes) continue;
    c = 0;
    ++n;
  }
}

}  // namespace

void prologue2d(const Prologue2dTask& task, int64_t begin, int64_t end) {
  with_scalar(task.type, [&](auto scalar) { rows<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
