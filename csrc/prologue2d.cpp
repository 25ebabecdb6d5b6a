// prologue2d on the CPU. y is dense, so a thread writes one sequence of values, whatever rows and borders they belong
// to: they are gathered in a buffer and stored in whole chunks. Compiled once per instruction set (PF_ISA).
#include "prologue2d.h"

#include <utility>

#include "cpu_kernels.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kChunk = 1024;     // values between a load and a store
constexpr int kShortPixel = 64;  // below so many channels, a loop for each pixel costs too much

// Buffers consecutive values of y and stores them in chunks.
template <typename T>
class ChunkWriter {
 public:
  using A = acc_t<T>;

  ChunkWriter(T* out, bool nontemporal) : out_(out), nontemporal_(nontemporal) {}
  ~ChunkWriter() { flush(); }

  void put(A value) {
    values_[held_++] = value;
    if (held_ == kChunk) flush();
  }

  // Puts n values, the count values from value i on by fill(i, count, to).
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
    store_row(out_, values_, held_, nontemporal_);
    out_ += held_;
    held_ = 0;
  }

  T* out_;
  bool nontemporal_;
  int held_ = 0;
  A values_[kChunk];
};

// Computes consecutive values of z. Null pointers stand for x = 0, the same encoding and the same style for all values,
// and no residual.
template <typename T>
struct ZSpan {
  using A = acc_t<T>;
  using Fill = void (*)(const ZSpan&, int64_t, int, A*);

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

  // Selects the loop for the pointers that are given.
  void select() { fill = select(std::make_index_sequence<16>()); }

 private:
  template <typename V>
  static const V* at(const V* values, int64_t i) {
    return values == nullptr ? nullptr : values + i;
  }

  template <size_t kGiven>
  static void compute(const ZSpan& span, int64_t first, int count, A* __restrict to) {
    const T *x = at(span.x, first), *residual = at(span.residual, first);
    const A *encoding = at(span.encoding, first), *styles = at(span.styles, first);
    const A same_encoding = span.same_encoding, same_style = span.same_style;
    for (int i = 0; i < count; ++i) {
      A z = (kGiven & 2) != 0 ? encoding[i] : same_encoding;
      if constexpr ((kGiven & 1) != 0) z += to_acc(x[i]);
      z *= (kGiven & 4) != 0 ? styles[i] : same_style;
      if constexpr ((kGiven & 8) != 0) z += to_acc(residual[i]);
      to[i] = z;
    }
  }

  template <size_t... kGiven>
  Fill select(std::index_sequence<kGiven...>) const {
    static constexpr Fill spans[] = {&compute<kGiven>...};
    return spans[(x ? 1 : 0) | (encoding ? 2 : 0) | (styles ? 4 : 0) | (residual ? 8 : 0)];
  }
};

template <typename T>
class RowSource {
 public:
  using A = acc_t<T>;

  explicit RowSource(const Prologue2dTask& task)
      : p_(task.params),
        x_(static_cast<const T*>(task.x)),
        residual_(static_cast<const T*>(task.residual)),
        border_(static_cast<const T*>(task.border)),
        styles_(static_cast<const A*>(task.styles)),
        columns_(static_cast<const A*>(task.columns)),
        rows_(static_cast<const A*>(task.rows)) {
    const bool dense = p_.x.w == p_.c && (residual_ == nullptr || p_.residual.w == p_.c);
    contiguous_ = p_.half == 0 && dense && (styles_ == nullptr || p_.c < kShortPixel);
  }

  // Writes row oy of one channel, in NCHW.
  void write_plane_row(int64_t n, int64_t c, int64_t oy, ChunkWriter<T>& out) {
    const int64_t i = source_index(p_.border, oy - p_.top, p_.h);
    const T* const ring = border_ + n * p_.ring.stride_n + c * p_.ring.stride_c;
    if (i < 0 && p_.border == Border::kZeros) return out.put_zeros(p_.out_w);
    if (i < 0) {
      const RingSide& side = oy == 0 ? p_.ring.top : p_.ring.bottom;
      return out.put(p_.out_w, [&](int64_t first, int count, A* to) {
        for (int k = 0; k < count; ++k) to[k] = to_acc(ring[side.at(first + k)]);
      });
    }
    const EncodedChannel e = encoded_channel(p_, c);
    ZSpan<T> z;
    if (c < p_.c) z.x = x_ + n * p_.x.n + c * p_.x.c + i * p_.x.h;
    if (e.table == Encoding::kColumns) z.encoding = columns_ + e.k * p_.columns.channel;
    if (e.table == Encoding::kRows) z.same_encoding = rows_[e.k * p_.rows.channel + i * p_.rows.position];
    if (styles_ != nullptr) z.same_style = styles_[n * p_.out_c + c];
    if (residual_ != nullptr) {
      z.residual = residual_ + n * p_.residual.n + c * p_.residual.c + i * p_.residual.h;
    }
    z.select();
    const auto edge = [&](int64_t j) {
      if (p_.border == Border::kZeros) return A(0);
      if (p_.border == Border::kReflect) return z.one(source_index(p_.border, j, p_.w));
      return A(to_acc(ring[ring_offset(p_.ring, oy, j + 1, p_.h)]));
    };
    for (int64_t j = -p_.left; j < 0; ++j) out.put(edge(j));
    out.put(p_.w, z);
    for (int64_t j = p_.w; j < p_.out_w - p_.left; ++j) out.put(edge(j));
  }

  // Writes row oy of all channels, in channels_last.
  void write_pixel_row(int64_t n, int64_t oy, ChunkWriter<T>& out) {
    const int64_t i = source_index(p_.border, oy - p_.top, p_.h);
    if (i < 0 && p_.border == Border::kZeros) return out.put_zeros(p_.out_w * p_.out_c);
    const auto edge = [&](int64_t j) {
      if (p_.border == Border::kZeros) return out.put_zeros(p_.out_c);
      if (p_.border == Border::kReflect) return pixel(n, i, source_index(p_.border, j, p_.w), out);
      const T* ring = border_ + n * p_.ring.stride_n + ring_offset(p_.ring, oy, j + 1, p_.h);
      out.put(p_.out_c, [&](int64_t first, int count, A* to) {
        for (int k = 0; k < count; ++k) to[k] = to_acc(ring[(first + k) * p_.ring.stride_c]);
      });
    };
    if (i < 0) {
      for (int64_t j = -1; j < p_.w + 1; ++j) edge(j);
      return;
    }
    for (int64_t j = -p_.left; j < 0; ++j) edge(j);
    if (contiguous_) {
      contiguous_row(n, i, out);
    } else {
      for (int64_t j = 0; j < p_.w; ++j) pixel(n, i, j, out);
    }
    for (int64_t j = p_.w; j < p_.out_w - p_.left; ++j) edge(j);
  }

 private:
  // Writes the channels of a pixel in up to three spans, each with one source.
  void pixel(int64_t n, int64_t i, int64_t j, ChunkWriter<T>& out) const {
    for (int64_t c = 0; c < p_.out_c;) {
      const EncodedChannel e = encoded_channel(p_, c);
      const int64_t length = e.table == Encoding::kNone ? p_.c : p_.half;
      ZSpan<T> z;
      if (c < p_.c) z.x = x_ + n * p_.x.n + i * p_.x.h + j * p_.x.w + c;
      if (e.table == Encoding::kColumns) z.encoding = columns_ + j * p_.columns.position;
      if (e.table == Encoding::kRows) z.encoding = rows_ + i * p_.rows.position;
      if (styles_ != nullptr) z.styles = styles_ + n * p_.out_c + c;
      if (residual_ != nullptr) {
        z.residual = residual_ + n * p_.residual.n + i * p_.residual.h + j * p_.residual.w + c;
      }
      z.select();
      out.put(length, z);
      c += length;
    }
  }

  // Writes all pixels of a row as one span, with the styles repeated side by side.
  void contiguous_row(int64_t n, int64_t i, ChunkWriter<T>& out) {
    ZSpan<T> z;
    z.x = x_ + n * p_.x.n + i * p_.x.h;
    if (residual_ != nullptr) z.residual = residual_ + n * p_.residual.n + i * p_.residual.h;
    if (styles_ == nullptr) {
      z.select();
      return out.put(p_.w * p_.c, z);
    }
    if (repeated_sample_ != n) {
      for (int64_t k = 0; k < kChunk + kShortPixel; ++k)
        repeated_styles_[k] = k < p_.c ? styles_[n * p_.c + k] : repeated_styles_[k - p_.c];
      repeated_sample_ = n;
    }
    z.styles = repeated_styles_;
    z.select();
    out.put(p_.w * p_.c, [&](int64_t first, int count, A* to) {
      ZSpan<T> part = z;
      part.x += first;
      if (part.residual != nullptr) part.residual += first;
      part.styles += first % p_.c;
      part(0, count, to);
    });
  }

  const Prologue2dParams& p_;
  const T *x_, *residual_, *border_;
  const A *styles_, *columns_, *rows_;
  bool contiguous_;               // the values of a row of z depend on nothing but contiguous x, residual and styles
  int64_t repeated_sample_ = -1;  // whose styles are in repeated_styles_
  A repeated_styles_[kChunk + kShortPixel];
};

template <typename T>
void compute_rows(const Prologue2dTask& task, int64_t begin, int64_t end) {
  const Prologue2dParams& p = task.params;
  const int64_t planes = p.channels_last ? 1 : p.out_c;
  const int64_t length = p.out_w * (p.channels_last ? p.out_c : 1);
  int64_t oy = begin % p.out_h, c = begin / p.out_h % planes, n = begin / p.out_h / planes;
  RowSource<T> source(task);
  ChunkWriter<T> out(static_cast<T*>(task.y) + begin * length, task.nontemporal);
  for (int64_t row = begin; row < end; ++row) {
    if (p.channels_last) {
      source.write_pixel_row(n, oy, out);
    } else {
      source.write_plane_row(n, c, oy, out);
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
  dispatch_dtype(task.dtype, [&](auto scalar) { compute_rows<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
