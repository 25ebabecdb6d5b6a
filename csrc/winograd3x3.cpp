// Winograd's convolution on the CPU. A block of tiles is transformed, multiplied by the transformed weights and
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
constexpr int64_t kPart = 128;  // products of a partial sum
constexpr int64_t kSkew = 16;   // between matrices, or they would meet in the same lines of the first cache
constexpr int64_t kPartStep = kPart * kWinogradPanel + kSkew;  // from one matrix of a part of a panel to the next
using V = Vec<float, kLanes>;
using Values = V::Values;

// The points of F(4, 3) are 0, +-kA, +-kB and infinity. Less simple than 0, +-1, +-2, they halve the rounding error.
constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// The transforms of F(4, 2), with the points 0, 1/2, -1, 3/2 and infinity. Its inputs are `step` apart.
inline void transform_two_taps(const Values* d, int step, Values* o, int stride) {
  const Values a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step];
  o[0] = 0.75f * a - 1.25f * b - c + e;
  o[stride] = e - 1.5f * b - 0.5f * c;
  o[2 * stride] = 0.75f * b - 2.0f * c + e;
  o[3 * stride] = e + 0.5f * (c - b);
  o[4 * stride] = 0.75f * b - 1.25f * c - e + f;
}

inline void sum_two_taps(const Values* m, Values* o, int stride) {
  o[0] = m[0] + m[1] + m[2] + m[3];
  o[stride] = 0.5f * m[1] - m[2] + 1.5f * m[3];
  o[2 * stride] = 0.25f * m[1] + m[2] + 2.25f * m[3];
  o[3 * stride] = 0.125f * m[1] - m[2] + 3.375f * m[3] + m[4];
}

// The adjoint of sum_two_taps; the results are `step` apart.
inline void spread_two_taps(const Values* y, int step, Values* o, int stride) {
  const Values a = y[0], b = y[step], c = y[2 * step], d = y[3 * step];
  o[0] = a;
  o[stride] = a + 0.5f * b + 0.25f * c + 0.125f * d;
  o[2 * stride] = a - b + c - d;
  o[3 * stride] = a + 1.5f * b + 2.25f * c + 3.375f * d;
  o[4 * stride] = d;
}

// A form along one axis: its sizes, B^T for a column of a tile, A^T for a column of products and A for one of results.
// Product k takes the transformed tap min(k, 5), so the last tap serves kLastTap products.
struct Plain {
  static constexpr int kIn = 6, kProducts = 6, kOut = 4, kInStep = 4, kLastTap = 1;

  static void transform_input(const Values* d, Values* o, int stride) {
    const Values even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
    const Values even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
    o[0] = kA2 * kB2 * d[0] - (kA2 + kB2) * d[2] + d[4];
    o[stride] = even_a + odd_a;
    o[2 * stride] = even_a - odd_a;
    o[3 * stride] = even_b + odd_b;
    o[4 * stride] = even_b - odd_b;
    o[5 * stride] = kA2 * kB2 * d[1] - (kA2 + kB2) * d[3] + d[5];
  }

  static void transform_output(const Values* m, Values* o, int stride) {
    const Values p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    o[0] = m[0] + p + r;
    o[stride] = kA * q + kB * s;
    o[2 * stride] = kA2 * p + kB2 * r;
    o[3 * stride] = kA * kA2 * q + kB * kB2 * s + m[5];
  }

  static void spread_output(const Values* y, Values* o, int stride) {
    const Values even_a = y[0] + kA2 * y[2], odd_a = kA * (y[1] + kA2 * y[3]);
    const Values even_b = y[0] + kB2 * y[2], odd_b = kB * (y[1] + kB2 * y[3]);
    o[0] = y[0];
    o[stride] = even_a + odd_a;
    o[2 * stride] = even_a - odd_a;
    o[3 * stride] = even_b + odd_b;
    o[4 * stride] = even_b - odd_b;
    o[5 * stride] = y[3];
  }
};

struct Down {
  static constexpr int kIn = 9, kProducts = 9, kOut = 4, kInStep = 8, kLastTap = 4;

  static void transform_input(const Values* d, Values* o, int stride) {
    transform_two_taps(d, 2, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = d[2 * i + 1];
  }

  static void transform_output(const Values* m, Values* o, int stride) {
    sum_two_taps(m, o, stride);
    for (int i = 0; i < 4; ++i) o[i * stride] += m[5 + i];
  }

  static void spread_output(const Values* y, Values* o, int stride) {
    spread_two_taps(y, 1, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = y[i];
  }
};

struct Up {
  static constexpr int kIn = 5, kProducts = 9, kOut = 8, kInStep = 4, kLastTap = 4;

  static void transform_input(const Values* d, Values* o, int stride) {
    transform_two_taps(d, 1, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = d[1 + i];
  }

  static void transform_output(const Values* m, Values* o, int stride) {
    sum_two_taps(m, o, 2 * stride);
    for (int i = 0; i < 4; ++i) o[(2 * i + 1) * stride] = m[5 + i];
  }

  static void spread_output(const Values* y, Values* o, int stride) {
    spread_two_taps(y, 2, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = y[2 * i + 1];
  }
};

// Adds up the products of kCount rows of a [., depth] and kColumns columns of a panel [depth, kWinogradPanel], beyond
// what c holds if `more`. Sums of kPart products are added up in turn, which keeps the rounding error of many channels
// low.
template <int kCount>
inline void multiply_rows(const float* a, int64_t pitch_a, const float* panel, float* c, int64_t pitch, int64_t depth,
                          bool more) {
  for (int64_t begin = 0; begin < depth; begin += kPart) {
    const int64_t end = depth - begin < kPart ? depth : begin + kPart;
    Values sums[kCount][2] = {};
    for (int64_t k = begin; k < end; ++k) {
      const V left = V::load(panel + k * kWinogradPanel), right = V::load(panel + k * kWinogradPanel + kLanes);
      for (int r = 0; r < kCount; ++r) {
        const float x = a[r * pitch_a + k];
        sums[r][0] = x * left.v + sums[r][0];
        sums[r][1] = x * right.v + sums[r][1];
      }
    }
    for (int r = 0; r < kCount; ++r) {
      float* to = c + r * pitch;
      const bool add = more || begin > 0;
      V{add ? V::load(to).v + sums[r][0] : sums[r][0]}.store(to);
      V{add ? V::load(to + kLanes).v + sums[r][1] : sums[r][1]}.store(to + kLanes);
    }
  }
}

template <int kCount>
inline void multiply_last(const float* a, int64_t pitch_a, const float* panel, float* c, int64_t pitch, int64_t depth,
                          bool more, int64_t count) {
  if constexpr (kCount > 0) {
    if (count == kCount) return multiply_rows<kCount>(a, pitch_a, panel, c, pitch, depth, more);
    multiply_last<kCount - 1>(a, pitch_a, panel, c, pitch, depth, more, count);
  }
}

// Stores past the caches where the hardware can, or returns false.
inline bool nontemporal_store(float* p, Values value) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof value != 0) return false;
  __m512 whole;
  std::memcpy(&whole, &value, sizeof whole);
  _mm512_stream_ps(p, whole);
  return true;
#else
  return false;
#endif
}

template <typename T>
inline Values load_part(const T* p, int64_t count) {
  if (count >= kLanes) return load_to_acc<kLanes>(p).v;
  T part[kLanes] = {};
  std::memcpy(part, p, size_t(count) * sizeof(T));
  return load_to_acc<kLanes>(part).v;
}

inline void store_part(float* p, Values value, int64_t count, bool nontemporal) {
  if (count < kLanes) {
    std::memcpy(p, &value, size_t(count) * sizeof(float));
  } else if (!nontemporal || !nontemporal_store(p, value)) {
    V{value}.store(p);
  }
}

// Rounds as from_acc does, which compilers do not vectorise here.
inline void store_part(BFloat16* p, Values value, int64_t count, bool) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(Values))));
  typedef uint16_t Part __attribute__((vector_size(sizeof(Values) / 2)));
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits quiet = Bits{} + 0x7fc0u;
  const Part part = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, Part);
  std::memcpy(p, &part, count < kLanes ? size_t(count) * sizeof(BFloat16) : sizeof part);
}

inline const float* of_sample(const WinogradTask::Factor& factor, int64_t n) {
  return factor.data == nullptr ? nullptr : factor.data + n * factor.stride_n;
}

inline Values part_or(const float* vector, int64_t first, int64_t count, float otherwise) {
  return vector == nullptr ? V::broadcast(otherwise).v : load_part(vector + first, count);
}

// G for a column of a kernel.
inline void transform_kernel(WinogradForm form, const Values* g, Values* o, int stride) {
  if (form == WinogradForm::kPlain) {
    constexpr float kInA = 1 / (2 * kA2 * (kA2 - kB2)), kInB = 1 / (2 * kB2 * (kB2 - kA2));
    const Values even_a = kInA * (g[0] + kA2 * g[2]), odd_a = kInA * kA * g[1];
    const Values even_b = kInB * (g[0] + kB2 * g[2]), odd_b = kInB * kB * g[1];
    o[0] = 1 / (kA2 * kB2) * g[0];
    o[stride] = even_a + odd_a;
    o[2 * stride] = even_a - odd_a;
    o[3 * stride] = even_b + odd_b;
    o[4 * stride] = even_b - odd_b;
    o[5 * stride] = g[2];
  } else {
    const Values first = form == WinogradForm::kUp ? g[2] : g[0], last = form == WinogradForm::kUp ? g[0] : g[2];
    o[0] = 1 / 0.75f * first;
    o[stride] = -1 / 0.75f * (first + 0.5f * last);
    o[2 * stride] = 1 / 3.75f * (last - first);
    o[3 * stride] = 1 / 3.75f * (first + 1.5f * last);
    o[4 * stride] = last;
    o[5 * stride] = g[1];
  }
}

// The kernels of one channel of a panel.
typedef float Kernels[9][kWinogradPanel];

// Transforms kernels into 36 vectors that are `step` apart.
inline void transform_kernels(WinogradForm form, const Kernels& taps, float* to, int64_t step) {
  for (int lane = 0; lane < kWinogradPanel; lane += kLanes) {
    Values half[6 * 3];
    for (int j = 0; j < 3; ++j) {
      const Values column[3] = {V::load(taps[j] + lane).v, V::load(taps[3 + j] + lane).v,
                                V::load(taps[6 + j] + lane).v};
      transform_kernel(form, column, half + j, 3);
    }
    for (int i = 0; i < 6; ++i) {
      Values whole[6];
      transform_kernel(form, half + i * 3, whole, 1);
      for (int j = 0; j < 6; ++j) V{whole[j]}.store(to + (i * 6 + j) * step + lane);
    }
  }
}

inline void write_squares(const Kernels& taps, float* to, int64_t count) {
  for (int64_t f = 0; f < count; ++f) {
    float sum = 0;
    for (int k = 0; k < 9; ++k) sum += taps[k][f] * taps[k][f];
    to[f] = sum;
  }
}

// Transposes a square. A loop over the steps would keep the rows in memory.
template <int kStep = 1>
inline void transpose(V* rows) {
  if constexpr (kStep < kLanes) {
    V next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = interleave<1>(rows[i], rows[i + kLanes / 2]);
    }
    transpose<2 * kStep>(next);
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Reads the kernels of kLanes channels and `count` filters, which lie one after the other in memory.
inline void read_dense_kernels(const float* weight, int64_t stride_o, bool flip, int64_t count, Kernels* to) {
  for (int64_t first = 0; first < kWinogradPanel; first += kLanes) {
    for (int part = 0; part < 9; ++part) {
      V rows[kLanes];
      for (int f = 0; f < kLanes; ++f) {
        const bool known = first + f < count;
        rows[f] = known ? V::load(weight + (first + f) * stride_o + part * kLanes) : V::broadcast(0);
      }
      transpose(rows);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int tap = (part * kLanes + lane) % 9;
        rows[lane].store(to[(part * kLanes + lane) / 9][flip ? 8 - tap : tap] + first);
      }
    }
  }
}

// Reads the kernels of the channels [begin, end), at most kLanes, of a panel.
inline void read_kernels(const WinogradWeightTask& task, int64_t panel, int64_t begin, int64_t end, Kernels* to) {
  const int64_t first = panel * kWinogradPanel, left = task.filters - first;
  const int64_t count = left < kWinogradPanel ? left : kWinogradPanel;
  const float* weight = task.weight + first * task.stride_o + begin * task.stride_i;
  const bool flip = task.stride_w == -1;
  const bool dense = task.stride_i == 9 && (flip ? task.stride_h == -3 : task.stride_h == 3 && task.stride_w == 1);
  if (dense && end - begin == kLanes) {
    return read_dense_kernels(flip ? weight - 8 : weight, task.stride_o, flip, count, to);
  }
  std::memset(to, 0, size_t(end - begin) * sizeof(Kernels));
  for (int64_t i = 0; i < end - begin; ++i) {
    for (int64_t f = 0; f < count; ++f) {
      const float* w = weight + f * task.stride_o + i * task.stride_i;
      for (int k = 0; k < 9; ++k) to[i][k][f] = w[k / 3 * task.stride_h + k % 3 * task.stride_w];
    }
  }
}

// Transforms the channels [begin, end) of a panel into 36 matrices [., kWinogradPanel] that are `step` apart. Writes
// the sums of squares of a channel's kernels to squares + i * pitch, unless squares is null.
inline void transform_panel(const WinogradWeightTask& task, int64_t panel, int64_t begin, int64_t end, float* to,
                            int64_t step, float* squares, int64_t pitch) {
  const int64_t left = task.filters - panel * kWinogradPanel;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t last = first + kLanes < end ? first + kLanes : end;
    Kernels kernels[kLanes];
    read_kernels(task, panel, first, last, kernels);
    for (int64_t i = first; i < last; ++i) {
      transform_kernels(task.form, kernels[i - first], to + (i - begin) * kWinogradPanel, step);
      if (squares == nullptr) continue;
      write_squares(kernels[i - first], squares + i * pitch, left < kWinogradPanel ? left : kWinogradPanel);
    }
  }
}

template <typename Form, typename T>
class Block {
 public:
  explicit Block(const WinogradTask& t)
      : task(t),
        grid(winograd_grid(t)),
        depth(ceil_div(t.channels, kLanes) * kLanes),
        panels(winograd_panels(t.filters)),
        group(panels_at_once(t, grid.most_tiles(), panels)),
        width(group * kWinogradPanel),
        memory(kProducts * grid.most_tiles() * (depth + width) + 2 * kWinogradTaps * kSkew),
        panel_memory(t.transformed != nullptr ? 0 : kWinogradTaps * kPartStep + (t.channels + t.n) * kWinogradPanel),
        squares(panel_memory.data + kWinogradTaps * kPartStep),
        coefficients(squares + t.channels * kWinogradPanel),
        inputs(memory.data),
        products(memory.data + kProducts * grid.most_tiles() * depth + kWinogradTaps * kSkew) {}

  void run(int64_t item) {
    const int64_t split = item / task.blocks, last = (split + 1) * panels / task.splits;
    block = item % task.blocks;
    arrange();
    for_each_tile([&](const Place& at) { read(at); });
    for (begin = split * panels / task.splits; begin < last; begin += group) {
      multiply(begin + group < last ? begin + group : last);
      for_each_tile([&](const Place& at) { write(at, last); });
    }
  }

 private:
  static constexpr int kProducts = Form::kProducts * Form::kProducts;

  // A tile, and the row that it has in the matrices of its kind.
  struct Place {
    int64_t n, row, column;
    int kind;
    int64_t index;
  };

  template <typename Body>
  void for_each_tile(const Body& body) const {
    for (int kind = 0; kind < WinogradGrid::kKinds; ++kind) {
      const WinogradTiles& tiles = grid.kinds[kind];
      const int64_t first = grid.first_tile(kind, block), end = grid.first_tile(kind, block + 1);
      for (int64_t tile = first; tile < end; ++tile) {
        const int64_t row = tile / tiles.columns;
        body({row / tiles.rows, tiles.top + row % tiles.rows, tiles.left + tile % tiles.columns, kind, tile - first});
      }
    }
  }

  static int64_t panels_at_once(const WinogradTask& task, int64_t tiles, int64_t panels) {
    if (task.transformed == nullptr) return 1;
    constexpr int64_t kCache = int64_t(1) << 19;  // so that products stay near the core
    const int64_t fitting = kCache / (int64_t(sizeof(float)) * kProducts * tiles * kWinogradPanel);
    return fitting < 1 ? 1 : fitting < panels ? fitting : panels;
  }

  // The products of a tile along its axes. One of a single row or column has the first product alone along that axis:
  // its other inputs are zeros.
  int height(int kind) const { return grid.kinds[kind].thin_rows ? 1 : Form::kProducts; }
  int length(int kind) const { return grid.kinds[kind].thin_columns ? 1 : Form::kProducts; }

  // Lays out the matrices of the block: the products of one transformed tap follow each other, in each of them the
  // tiles of one kind.
  void arrange() {
    int64_t row = 0;
    for (int tap = 0; tap < kWinogradTaps; ++tap) {
      const int copies_j = tap % 6 == 5 ? Form::kLastTap : 1, copies_i = tap / 6 == 5 ? Form::kLastTap : 1;
      first_row[tap] = row;
      for (int copy = 0; copy < copies_i * copies_j; ++copy) {
        const int i = tap / 6 + copy / copies_j, j = tap % 6 + copy % copies_j;
        for (int kind = 0; kind < WinogradGrid::kKinds; ++kind) {
          if (i >= height(kind) || j >= length(kind)) continue;
          input_of[kind][i * Form::kProducts + j] = row * depth + tap * kSkew;
          product_of[kind][i * Form::kProducts + j] = row * width + tap * kSkew;
          row += grid.first_tile(kind, block + 1) - grid.first_tile(kind, block);
        }
      }
    }
    first_row[kWinogradTaps] = row;
  }

  void read(const Place& at) {
    const int64_t top = at.row * Form::kInStep - task.padding, left = at.column * Form::kInStep - task.padding;
    const bool inside = top >= 0 && left >= 0 && top + Form::kIn <= task.h && left + Form::kIn <= task.w;
    if (inside) {
      read_tile<true>(at, top, left);
    } else {
      read_tile<false>(at, top, left);
    }
  }

  template <bool kInside>
  void read_tile(const Place& tile, int64_t top, int64_t left) {
    const int64_t n = tile.n;
    const int rows = kInside ? Form::kProducts : height(tile.kind),
              columns = kInside ? Form::kProducts : length(tile.kind);
    const float *scale = of_sample(task.in_scale, n), *shift = of_sample(task.in_shift, n);
    const T* image = static_cast<const T*>(task.x) + n * task.h * task.w * task.channels;
    float* to = inputs + tile.index * depth;
    for (int64_t first = 0; first < task.channels; first += kLanes) {
      const int64_t lanes = task.channels - first;
      const Values factor = part_or(scale, first, lanes, 1), term = part_or(shift, first, lanes, 0);
      const auto at = [&](int64_t y, int64_t x) {
        return factor * load_part(image + (y * task.w + x) * task.channels + first, lanes) + term;
      };
      Values half[Form::kProducts * Form::kIn];
      for (int j = 0; j < Form::kIn; ++j) {
        Values column[Form::kIn];
        for (int i = 0; i < Form::kIn; ++i) {
          if (kInside) {
            column[i] = at(top + i, left + j);
            continue;
          }
          const int64_t y = source_index(task.border, top + i, task.h), x = source_index(task.border, left + j, task.w);
          const bool known = y >= 0 && x >= 0 && y < task.h && x < task.w;
          column[i] = known ? at(y, x) : border(n, top + i, left + j, first, lanes);
        }
        Form::transform_input(column, half + j, Form::kIn);
      }
      for (int i = 0; i < rows; ++i) {
        Values whole[Form::kProducts];
        Form::transform_input(half + i * Form::kIn, whole, 1);
        const int64_t* offsets = input_of[tile.kind] + i * Form::kProducts;
        for (int j = 0; j < columns; ++j) V{whole[j]}.store(to + offsets[j] + first);
      }
    }
  }

  // The values of a pixel outside of the input: zeros, or those of the padding map next to it.
  Values border(int64_t n, int64_t y, int64_t x, int64_t first, int64_t lanes) const {
    V pixel = V::broadcast(0);
    if (task.border != Border::kInstance || y < -1 || x < -1 || y > task.h || x > task.w) return pixel.v;
    const Ring& ring = task.ring;
    const float* from = task.pad_map + n * ring.stride_n + ring_offset(ring, y + 1, x + 1, task.h);
    for (int i = 0; i < kLanes && i < lanes; ++i) pixel.v[i] = from[(first + i) * ring.stride_c];
    return pixel.v;
  }

  // Multiplies by the panels [begin, end).
  void multiply(int64_t end) {
    if (task.transformed == nullptr) return multiply_as_it_is();
    for (int tap = 0; tap < kWinogradTaps; ++tap) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const float* transformed = task.transformed + (tap * panels + panel) * task.channels * kWinogradPanel;
        multiply_panel(tap, transformed, panel - begin, 0, task.channels);
      }
    }
  }

  // Multiplies by the panel `begin` of a weight that is not transformed, in parts that stay in the second cache.
  void multiply_as_it_is() {
    for (int64_t first = 0; first < task.channels; first += kPart) {
      const int64_t end = first + kPart < task.channels ? first + kPart : task.channels;
      transform_panel(task.weight, begin, first, end, panel_memory.data, kPartStep, task.demodulate ? squares : nullptr,
                      kWinogradPanel);
      for (int tap = 0; tap < kWinogradTaps; ++tap) {
        multiply_panel(tap, panel_memory.data + tap * kPartStep, 0, first, end - first);
      }
    }
    if (task.demodulate) demodulate();
  }

  // Multiplies the channels from `first` on by a panel [channels, kWinogradPanel], the given one of the group.
  void multiply_panel(int tap, const float* panel, int64_t index, int64_t first, int64_t channels) {
    const float* a = inputs + first_row[tap] * depth + tap * kSkew + first;
    float* c = products + first_row[tap] * width + tap * kSkew + index * kWinogradPanel;
    const int64_t end = first_row[tap + 1] - first_row[tap];
    for (int64_t column = 0; column < kWinogradPanel; column += kColumns) {
      int64_t row = 0;
      for (; row + kRows <= end; row += kRows) {
        multiply_rows<kRows>(a + row * depth, depth, panel + column, c + row * width + column, width, channels,
                             first > 0);
      }
      multiply_last<kRows - 1>(a + row * depth, depth, panel + column, c + row * width + column, width, channels,
                               first > 0, end - row);
    }
  }

  // Computes the demodulation coefficients of the panel in memory, for every sample.
  void demodulate() {
    for (int64_t n = 0; n < task.n; ++n) {
      const float* styles = of_sample(task.in_scale, n);
      float* to = coefficients + n * kWinogradPanel;
      for (int f = 0; f < kWinogradPanel; ++f) to[f] = 0;
      for (int64_t i = 0; i < task.channels; ++i) {
        const float square = styles == nullptr ? 1.0f : styles[i] * styles[i];
        for (int f = 0; f < kWinogradPanel; ++f) to[f] += squares[i * kWinogradPanel + f] * square;
      }
      for (int f = 0; f < kWinogradPanel; ++f) to[f] = 1 / std::sqrt(to[f] + task.eps);
    }
  }

  // Writes the filters of the group, which ends before the panel `end`.
  void write(const Place& at, int64_t end) {
    const int64_t top = at.row * Form::kOut, left = at.column * Form::kOut;
    if (top + Form::kOut <= task.out_h && left + Form::kOut <= task.out_w) {
      write_tile<true>(at, top, left, end);
    } else {
      write_tile<false>(at, top, left, end);
    }
  }

  template <bool kWhole>
  void write_tile(const Place& tile, int64_t top, int64_t left, int64_t end) {
    const int64_t o = task.filters, n = tile.n;
    const int rows = height(tile.kind), columns = length(tile.kind);
    const int64_t out_rows = kWhole || task.out_h - top > Form::kOut ? Form::kOut : task.out_h - top;
    const int64_t out_columns = kWhole || task.out_w - left > Form::kOut ? Form::kOut : task.out_w - left;
    const float* scale = of_sample(task.scale, n);
    if (task.demodulate) scale = coefficients + (n - begin) * kWinogradPanel;
    const float* shift = of_sample(task.shift, n);
    const float* slopes = of_sample(task.slope, n);
    const int64_t pixel = top * task.out_w + left;
    const float* noise = task.noise == nullptr ? nullptr : task.noise + n * task.noise_stride_n + pixel;
    T* image = static_cast<T*>(task.y) + (n * task.out_h * task.out_w + pixel) * o;
    const float* from = products + tile.index * width - begin * kWinogradPanel;
    const int64_t stop = (begin + group < end ? begin + group : end) * kWinogradPanel, last = stop < o ? stop : o;
    for (int64_t first = begin * kWinogradPanel; first < last; first += kLanes) {
      const int64_t lanes = o - first;
      const Values factor = part_or(scale, first, lanes, 1), term = part_or(shift, first, lanes, 0);
      const Values slope = part_or(slopes, first, lanes, task.alpha);
      Values half[Form::kOut * Form::kProducts];
      for (int j = 0; j < Form::kProducts; ++j) {
        Values column[Form::kProducts] = {};
        for (int i = 0; i < Form::kProducts; ++i) {
          if (!kWhole && (i >= rows || j >= columns)) continue;
          column[i] = V::load(from + product_of[tile.kind][i * Form::kProducts + j] + first).v;
        }
        Form::transform_output(column, half + j, Form::kProducts);
      }
      for (int i = 0; i < out_rows; ++i) {
        Values whole[Form::kOut];
        Form::transform_output(half + i * Form::kProducts, whole, 1);
        for (int j = 0; j < out_columns; ++j) {
          const int64_t offset = i * task.out_w + j;
          const Values value = whole[j] * factor + term + (noise == nullptr ? 0.0f : noise[offset]);
          store_part(image + offset * o + first, activate(value, slope), lanes, task.nontemporal);
        }
      }
    }
  }

  // A slope of zero makes zeros, of -inf too; comparisons keep NaN.
  Values activate(Values value, Values slope) const {
    const Values negative = slope == 0 ? Values{} : value * slope;
    const Values active = task.gain * (value < 0 ? negative : value);
    const Values low = active < -task.clamp ? Values{} - task.clamp : active;
    return low > task.clamp ? Values{} + task.clamp : low;
  }

  const WinogradTask& task;
  const WinogradGrid grid;
  const int64_t depth;          // channels, filled up to whole vectors
  const int64_t panels, group;  // all of them, and those whose products are in memory at once
  const int64_t width;          // filters of a group
  const Scratch<float> memory;
  const Scratch<float> panel_memory;  // a part of a transformed panel, and what its demodulation needs
  float* const squares;               // of the panel's kernels, [I, kWinogradPanel]
  float* const coefficients;          // [N, kWinogradPanel]
  float* const inputs;                // matrices of `depth` columns
  float* const products;              // matrices of `width` columns
  int64_t block = 0;                  // of tiles
  int64_t begin = 0;                  // the first panel of the group
  int64_t first_row[kWinogradTaps + 1];
  int64_t input_of[WinogradGrid::kKinds][kProducts];  // where the tiles of a kind begin in the matrix of each product
  int64_t product_of[WinogradGrid::kKinds][kProducts];
};

template <typename Form, typename T>
void compute_blocks(const WinogradTask& task) {
  Block<Form, T> block(task);
  while (true) {
    const int64_t item = __atomic_fetch_add(task.next, 1, __ATOMIC_RELAXED);
    if (item >= task.items) return;
    block.run(item);
  }
}

// G^T for a column of transformed taps.
inline void gather_kernel(WinogradForm form, const Values* u, Values* g, int stride) {
  if (form == WinogradForm::kPlain) {
    constexpr float kInA = 1 / (2 * kA2 * (kA2 - kB2)), kInB = 1 / (2 * kB2 * (kB2 - kA2));
    const Values even_a = kInA * (u[1] + u[2]), even_b = kInB * (u[3] + u[4]);
    g[0] = 1 / (kA2 * kB2) * u[0] + even_a + even_b;
    g[stride] = kInA * kA * (u[1] - u[2]) + kInB * kB * (u[3] - u[4]);
    g[2 * stride] = kA2 * even_a + kB2 * even_b + u[5];
  } else {
    const Values first = 1 / 0.75f * (u[0] - u[1]) + 1 / 3.75f * (u[3] - u[2]);
    const Values last = -0.5f / 0.75f * u[1] + 1 / 3.75f * (u[2] + 1.5f * u[3]) + u[4];
    g[0] = form == WinogradForm::kUp ? last : first;
    g[stride] = u[5];
    g[2 * stride] = form == WinogradForm::kUp ? first : last;
  }
}

// Adds to c [kCount, .] the products of kCount columns of a [depth, .] and kColumns columns of b [depth, .].
template <int kCount>
inline void add_products(const float* a, int64_t pitch_a, const float* b, int64_t pitch_b, float* c, int64_t pitch,
                         int64_t depth) {
  Values sums[kCount][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const V left = V::load(b + k * pitch_b), right = V::load(b + k * pitch_b + kLanes);
    for (int r = 0; r < kCount; ++r) {
      const float x = a[k * pitch_a + r];
      sums[r][0] = x * left.v + sums[r][0];
      sums[r][1] = x * right.v + sums[r][1];
    }
  }
  for (int r = 0; r < kCount; ++r) {
    float* to = c + r * pitch;
    V{V::load(to).v + sums[r][0]}.store(to);
    V{V::load(to + kLanes).v + sums[r][1]}.store(to + kLanes);
  }
}

// The gradient of a part of a weight. Channels and filters are filled up with zeros to whole blocks of the product.
template <typename Form>
class Gradient {
 public:
  explicit Gradient(const WinogradGradientTask& t)
      : task(t),
        rows(ceil_div(t.out_h, Form::kOut)),
        columns(ceil_div(t.out_w, Form::kOut)),
        depth(ceil_div(ceil_div(t.channel_part, kRows) * kRows, kLanes) * kLanes),
        width(ceil_div(t.filter_part, kColumns) * kColumns),
        memory(kProducts * kTiles * (depth + width) + kWinogradTaps * (2 * kSkew + depth * width)),
        inputs(memory.data),
        outputs(inputs + kProducts * kTiles * depth + kWinogradTaps * kSkew),
        sums(outputs + kProducts * kTiles * width + kWinogradTaps * kSkew) {
    std::memset(memory.data, 0, size_t(kProducts * kTiles * (depth + width) + 2 * kWinogradTaps * kSkew) * 4);
  }

  void run(int64_t item) {
    const int64_t parts = ceil_div(task.filters, task.filter_part);
    const int64_t channel = item / parts * task.channel_part, filter = item % parts * task.filter_part;
    const int64_t channels = least(task.channel_part, task.channels - channel);
    const int64_t filters = least(task.filter_part, task.filters - filter);
    std::memset(sums, 0, size_t(kWinogradTaps * depth * width) * sizeof(float));
    const int64_t all = task.n * rows * columns;
    for (int64_t first = 0; first < all; first += kTiles) {
      const int64_t count = least(kTiles, all - first);
      arrange(count);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t row = (first + k) / columns, n = row / rows, top = row % rows, left = (first + k) % columns;
        read(n, top * Form::kInStep - task.padding, left * Form::kInStep - task.padding, channel, channels, k);
        spread(n, top * Form::kOut, left * Form::kOut, filter, filters, k);
      }
      multiply(channels);
    }
    for (int64_t i = 0; i < channels; ++i) write(channel, i, filter, filters);
  }

 private:
  static constexpr int kProducts = Form::kProducts * Form::kProducts;
  static constexpr int64_t kTiles = 48;

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // Lays out the matrices of a block: the products of one transformed tap follow each other.
  void arrange(int64_t count) {
    int64_t row = 0;
    for (int tap = 0; tap < kWinogradTaps; ++tap) {
      const int i = tap / 6, j = tap % 6, copies_j = j == 5 ? Form::kLastTap : 1;
      const int copies = (i == 5 ? Form::kLastTap : 1) * copies_j;
      first_row[tap] = row;
      for (int copy = 0; copy < copies; ++copy) {
        const int product = (i + copy / copies_j) * Form::kProducts + j + copy % copies_j;
        input_of[product] = (row + copy * count) * depth + tap * kSkew;
        output_of[product] = (row + copy * count) * width + tap * kSkew;
      }
      row += copies * count;
    }
    first_row[kWinogradTaps] = row;
  }

  // Applies `transform` to both axes of a square of vectors.
  template <int kFrom, typename Transform>
  static void apply(Values (*square)[kFrom], const int64_t* offsets, float* to, Transform transform) {
    Values half[Form::kProducts * kFrom];
    for (int j = 0; j < kFrom; ++j) transform(square[j], half + j, kFrom);
    for (int i = 0; i < Form::kProducts; ++i) {
      Values whole[Form::kProducts];
      transform(half + i * kFrom, whole, 1);
      for (int j = 0; j < Form::kProducts; ++j) V{whole[j]}.store(to + offsets[i * Form::kProducts + j]);
    }
  }

  void read(int64_t n, int64_t top, int64_t left, int64_t channel, int64_t channels, int64_t row) {
    const float* image = task.x + n * task.h * task.w * task.channels + channel;
    for (int64_t first = 0; first < channels; first += kLanes) {
      Values square[Form::kIn][Form::kIn];
      load(image + first, channels - first, top, left, task.h, task.w, task.channels, square);
      apply<Form::kIn>(square, input_of, inputs + row * depth + first, Form::transform_input);
    }
  }

  void spread(int64_t n, int64_t top, int64_t left, int64_t filter, int64_t filters, int64_t row) {
    const float* image = task.dy + n * task.out_h * task.out_w * task.filters + filter;
    for (int64_t first = 0; first < filters; first += kLanes) {
      Values square[Form::kOut][Form::kOut];
      load(image + first, filters - first, top, left, task.out_h, task.out_w, task.filters, square);
      apply<Form::kOut>(square, output_of, outputs + row * width + first, Form::spread_output);
    }
  }

  // Reads a square by columns; what lies outside of the image is zero.
  template <int kSide>
  static void load(const float* image, int64_t lanes, int64_t top, int64_t left, int64_t h, int64_t w, int64_t pixel,
                   Values (*square)[kSide]) {
    for (int j = 0; j < kSide; ++j) {
      for (int i = 0; i < kSide; ++i) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && x >= 0 && y < h && x < w;
        square[j][i] = inside ? load_part(image + (y * w + x) * pixel, lanes) : Values{};
      }
    }
  }

  void multiply(int64_t channels) {
    for (int tap = 0; tap < kWinogradTaps; ++tap) {
      const float* a = inputs + first_row[tap] * depth + tap * kSkew;
      const float* b = outputs + first_row[tap] * width + tap * kSkew;
      float* c = sums + tap * depth * width;
      for (int64_t o = 0; o < width; o += kColumns) {
        for (int64_t i = 0; i < channels; i += kRows) {
          add_products<kRows>(a + i, depth, b + o, width, c + i * width + o, width,
                              first_row[tap + 1] - first_row[tap]);
        }
      }
    }
  }

  // Writes the kernels of one channel.
  void write(int64_t channel, int64_t i, int64_t filter, int64_t filters) const {
    for (int64_t first = 0; first < filters; first += kLanes) {
      Values half[3 * 6], whole[9];
      for (int j = 0; j < 6; ++j) {
        Values column[6];
        for (int k = 0; k < 6; ++k) column[k] = V::load(sums + ((k * 6 + j) * depth + i) * width + first).v;
        gather_kernel(task.form, column, half + j, 6);
      }
      for (int k = 0; k < 3; ++k) gather_kernel(task.form, half + k * 6, whole + k * 3, 1);
      float* to = task.dw + ((filter + first) * task.channels + channel + i) * 9;
      for (int l = 0; l < kLanes && first + l < filters; ++l) {
        for (int k = 0; k < 9; ++k) to[l * task.channels * 9 + k] = whole[k][l];
      }
    }
  }

  const WinogradGradientTask& task;
  const int64_t rows, columns;  // of tiles
  const int64_t depth, width;   // channels and filters of a part, filled up
  const Scratch<float> memory;
  float* const inputs;   // matrices of `depth` columns
  float* const outputs;  // matrices of `width` columns
  float* const sums;     // [36, depth, width]
  int64_t first_row[kWinogradTaps + 1];
  int64_t input_of[kProducts], output_of[kProducts];  // where the matrix of each product begins
};

template <typename Form>
void compute_gradients(const WinogradGradientTask& task) {
  Gradient<Form> gradient(task);
  while (true) {
    const int64_t item = __atomic_fetch_add(task.next, 1, __ATOMIC_RELAXED);
    if (item >= task.items) return;
    gradient.run(item);
  }
}

}  // namespace

// The range says how many threads there are; each takes items until none is left.
void winograd3x3(const WinogradTask& task, int64_t, int64_t) {
  const auto compute = [&](auto form) {
    if (task.dtype == Dtype::kBFloat16) return compute_blocks<decltype(form), BFloat16>(task);
    compute_blocks<decltype(form), float>(task);
  };
  if (task.form == WinogradForm::kPlain) return compute(Plain());
  if (task.form == WinogradForm::kDown) return compute(Down());
  compute(Up());
}

void winograd3x3_gradient(const WinogradGradientTask& task, int64_t, int64_t) {
  if (task.form == WinogradForm::kPlain) return compute_gradients<Plain>(task);
  if (task.form == WinogradForm::kDown) return compute_gradients<Down>(task);
  compute_gradients<Up>(task);
}

void winograd3x3_weight(const WinogradWeightTask& task, int64_t begin, int64_t end) {
  constexpr int64_t kBatch = 16;  // channels whose results are collected, so that they leave in whole pages
  constexpr int64_t kStep = kBatch * kWinogradPanel + kSkew;
  const int64_t panels = winograd_panels(task.filters), step = panels * task.channels * kWinogradPanel;
  const Scratch<float> collected(kWinogradTaps * kStep);
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t first = 0; first < task.channels; first += kBatch) {
      const int64_t last = first + kBatch < task.channels ? first + kBatch : task.channels;
      float* squares = task.squares == nullptr ? nullptr : task.squares + panel * kWinogradPanel;
      transform_panel(task, panel, first, last, collected.data, kStep, squares, task.filters);
      float* to = task.transformed + (panel * task.channels + first) * kWinogradPanel;
      for (int k = 0; k < kWinogradTaps; ++k) {
        store_row(to + k * step, collected.data + k * kStep, (last - first) * kWinogradPanel, task.nontemporal);
      }
    }
  }
}

}  // namespace posgan_fast::PF_ISA
