// Winograd's convolution on the CPU. A block of tiles is transformed, multiplied by the 36 transformed weights and
// transformed back while it stays in the cache; factors are applied while a tile is read and written. Every number of y
// is a sum in an order of its own, whatever the block and the thread. Compiled once per instruction set (PF_ISA).
#include "winograd3x3.h"
#include "cpu_kernels.h"
#include "vec.h"

namespace posgan_fast::PF_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;  // 24 sums, 2 weights and an input in 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 6;  // 12 sums, 2 weights and an input in 16 registers
#else
constexpr int kLanes = 4, kRows = 6;
#endif
constexpr int kColumns = 2 * kLanes;
constexpr int64_t kSkew = 16;  // or the 36 matrices of a block would meet in the same lines of the first cache
using V = Vec<float, kLanes>;
using Values = V::Values;

// B^T for a column of a tile.
inline void transform_input(const Values* d, Values* o, int stride) {
  const Values even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
  const Values outer = d[4] - d[2], inner = 2.0f * (d[3] - d[1]);
  o[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  o[stride] = even + odd;
  o[2 * stride] = even - odd;
  o[3 * stride] = outer + inner;
  o[4 * stride] = outer - inner;
  o[5 * stride] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// A^T for a column of products.
inline void transform_output(const Values* m, Values* o, int stride) {
  const Values p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  o[0] = m[0] + p + r;
  o[stride] = q + 2.0f * s;
  o[2 * stride] = p + 4.0f * r;
  o[3 * stride] = q + 8.0f * s + m[5];
}

// G for a column of a kernel.
inline void transform_kernel(const Values* g, Values* o, int stride) {
  const Values ends = (-1.0f / 6) * (g[0] + g[2]), middle = (-1.0f / 6) * g[1];
  const Values wide = (1.0f / 24) * g[0] + (1.0f / 6) * g[2], half = (1.0f / 12) * g[1];
  o[0] = 0.25f * g[0];
  o[stride] = ends + middle;
  o[2 * stride] = ends - middle;
  o[3 * stride] = wide + half;
  o[4 * stride] = wide - half;
  o[5 * stride] = g[2];
}

// Adds up the products of kCount rows of a [., depth] and kColumns columns of a panel [depth, kWinogradPanel].
template <int kCount>
inline void multiply_rows(const float* a, const float* panel, float* c, int64_t pitch, int64_t depth) {
  Values sums[kCount][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const V left = V::load(panel + k * kWinogradPanel), right = V::load(panel + k * kWinogradPanel + kLanes);
    for (int r = 0; r < kCount; ++r) {
      const float x = a[r * depth + k];
      sums[r][0] = x * left.v + sums[r][0];
      sums[r][1] = x * right.v + sums[r][1];
    }
  }
  for (int r = 0; r < kCount; ++r) {
    V{sums[r][0]}.store(c + r * pitch);
    V{sums[r][1]}.store(c + r * pitch + kLanes);
  }
}

template <int kCount>
inline void multiply_last(const float* a, const float* panel, float* c, int64_t pitch, int64_t depth, int count) {
  if constexpr (kCount > 0) {
    if (count == kCount) return multiply_rows<kCount>(a, panel, c, pitch, depth);
    multiply_last<kCount - 1>(a, panel, c, pitch, depth, count);
  }
}

class Block {
 public:
  explicit Block(const WinogradTask& t)
      : task(t),
        rows((t.h + kWinogradOut - 1) / kWinogradOut),
        columns((t.w + kWinogradOut - 1) / kWinogradOut),
        width(winograd_panels(t.filters) * kWinogradPanel),
        input_step(t.block * t.channels + kSkew),
        product_step(t.block * width + kSkew),
        memory(kWinogradProducts * (input_step + product_step)),
        inputs(memory.data),
        products(memory.data + kWinogradProducts * input_step) {}

  void run(int64_t index) {
    const int64_t all = task.n * rows * columns, begin = index * task.block;
    const int64_t end = begin + task.block < all ? begin + task.block : all;
    for (int64_t tile = begin; tile < end; ++tile) read(tile, inputs + (tile - begin) * task.channels);
    multiply(int(end - begin));
    for (int64_t tile = begin; tile < end; ++tile) write(tile, products + (tile - begin) * width);
  }

 private:
  struct Place {
    int64_t n, top, left;
  };

  Place place(int64_t tile) const {
    const int64_t column = tile % columns, row = tile / columns % rows;
    return {tile / columns / rows, row * kWinogradOut, column * kWinogradOut};
  }

  void read(int64_t tile, float* to) {
    const Place at = place(tile);
    const int64_t c = task.channels, step = input_step;
    const float* image = task.x + at.n * task.h * task.w * c;
    for (int64_t first = 0; first < c; first += kLanes) {
      const V factor = task.in_scale != nullptr ? V::load(task.in_scale + first) : V::broadcast(1);
      const V term = task.in_shift != nullptr ? V::load(task.in_shift + first) : V::broadcast(0);
      Values half[kWinogradIn * kWinogradIn];
      for (int j = 0; j < kWinogradIn; ++j) {
        const int64_t x = at.left - 1 + j;
        Values column[kWinogradIn];
        for (int i = 0; i < kWinogradIn; ++i) {
          const int64_t y = at.top - 1 + i;
          const bool inside = y >= 0 && y < task.h && x >= 0 && x < task.w;
          column[i] = inside ? factor.v * V::load(image + (y * task.w + x) * c + first).v + term.v : Values{};
        }
        transform_input(column, half + j, kWinogradIn);
      }
      for (int i = 0; i < kWinogradIn; ++i) {
        Values whole[kWinogradIn];
        transform_input(half + i * kWinogradIn, whole, 1);
        for (int j = 0; j < kWinogradIn; ++j) V{whole[j]}.store(to + (i * kWinogradIn + j) * step + first);
      }
    }
  }

  void multiply(int count) {
    const int64_t c = task.channels;
    for (int k = 0; k < kWinogradProducts; ++k) {
      const float* a = inputs + k * input_step;
      float* result = products + k * product_step;
      for (int64_t first = 0; first < width; first += kColumns) {
        const int64_t panel = first / kWinogradPanel, offset = first % kWinogradPanel;
        const float* b = task.transformed + (k * (width / kWinogradPanel) + panel) * c * kWinogradPanel + offset;
        int row = 0;
        for (; row + kRows <= count; row += kRows) {
          multiply_rows<kRows>(a + row * c, b, result + row * width + first, width, c);
        }
        multiply_last<kRows - 1>(a + row * c, b, result + row * width + first, width, c, count - row);
      }
    }
  }

  void write(int64_t tile, const float* from) {
    const Place at = place(tile);
    const int64_t o = task.filters, step = product_step;
    float* image = task.y + at.n * task.h * task.w * o;
    for (int64_t first = 0; first < o; first += kLanes) {
      const V factor = task.scale != nullptr ? V::load(task.scale + first) : V::broadcast(1);
      const V term = task.shift != nullptr ? V::load(task.shift + first) : V::broadcast(0);
      const V slope = task.slope != nullptr ? V::load(task.slope + first) : V::broadcast(1);
      Values half[kWinogradOut * kWinogradIn];
      for (int j = 0; j < kWinogradIn; ++j) {
        Values column[kWinogradIn];
        for (int i = 0; i < kWinogradIn; ++i) column[i] = V::load(from + (i * kWinogradIn + j) * step + first).v;
        transform_output(column, half + j, kWinogradIn);
      }
      for (int i = 0; i < kWinogradOut && at.top + i < task.h; ++i) {
        Values whole[kWinogradOut];
        transform_output(half + i * kWinogradIn, whole, 1);
        float* out = image + ((at.top + i) * task.w + at.left) * o + first;
        for (int j = 0; j < kWinogradOut && at.left + j < task.w; ++j) {
          const Values value = whole[j] * factor.v + term.v;
          V{value > 0 ? value : value * slope.v}.store(out + j * o);
        }
      }
    }
  }

  const WinogradTask& task;
  const int64_t rows, columns;  // of tiles
  const int64_t width;          // filters, filled up to whole panels
  const int64_t input_step, product_step;
  const Scratch<float> memory;
  float* const inputs;    // 36 times [block, I], input_step apart
  float* const products;  // 36 times [block, width], product_step apart
};

}  // namespace

void winograd3x3(const WinogradTask& task, int64_t begin, int64_t end) {
  Block block(task);
  for (int64_t index = begin; index < end; ++index) block.run(index);
}

void winograd3x3_weight(const WinogradWeightTask& task, int64_t begin, int64_t end) {
  constexpr int kBatch = 8;  // channels whose results are collected, so that they leave in whole pages
  const int64_t panels = winograd_panels(task.filters), step = panels * task.channels * kWinogradPanel;
  const Scratch<float> collected(kWinogradProducts * kBatch * kWinogradPanel);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kWinogradPanel;
    const int64_t left = task.filters - first, count = left < kWinogradPanel ? left : kWinogradPanel;
    for (int64_t batch = 0; batch < task.channels; batch += kBatch) {
      const int64_t channels = task.channels - batch < kBatch ? task.channels - batch : kBatch;
      for (int64_t i = 0; i < channels; ++i) {
        float taps[9][kWinogradPanel] = {};
        for (int64_t f = 0; f < count; ++f) {
          const float* w = task.weight + (first + f) * task.stride_o + (batch + i) * task.stride_i;
          for (int k = 0; k < 9; ++k) taps[k][f] = w[k / 3 * task.stride_h + k % 3 * task.stride_w];
        }
        for (int lane = 0; lane < kWinogradPanel; lane += kLanes) {
          Values half[kWinogradIn * 3];
          for (int j = 0; j < 3; ++j) {
            const Values column[3] = {V::load(taps[j] + lane).v, V::load(taps[3 + j] + lane).v,
                                      V::load(taps[6 + j] + lane).v};
            transform_kernel(column, half + j, 3);
          }
          float* to = collected.data + i * kWinogradPanel + lane;
          for (int r = 0; r < kWinogradIn; ++r) {
            Values whole[kWinogradIn];
            transform_kernel(half + r * 3, whole, 1);
            for (int j = 0; j < kWinogradIn; ++j) {
              V{whole[j]}.store(to + (r * kWinogradIn + j) * kBatch * kWinogradPanel);
            }
          }
        }
      }
      float* to = task.transformed + (panel * task.channels + batch) * kWinogradPanel;
      for (int k = 0; k < kWinogradProducts; ++k) {
        std::memcpy(to + k * step, collected.data + k * kBatch * kWinogradPanel,
                    size_t(channels * kWinogradPanel) * sizeof(float));
      }
    }
  }
}

}  // namespace posgan_fast::PF_ISA
