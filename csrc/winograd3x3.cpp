// Winograd's convolution on the CPU. A block of tiles is transformed, multiplied by the transformed weights and
// transformed back while it stays in the cache; factors are applied while a tile is read and written. The order in
// which products are added up depends on neither block nor thread. Compiled once per instruction set (PF_ISA).
#include "winograd3x3_panels.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int64_t kPart = 128;                                 // products of a partial sum
constexpr int64_t kPartStep = kPart * kWinogradPanel + kSkew;  // from one matrix of a part of a panel to the next

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
        panel_memory(t.transformed != nullptr ? 0 : kWinogradTaps * kPartStep + t.channels * kWinogradPanel),
        coefficients(t.demodulate ? t.n * width : 0),
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

  // The products of a tile along its axes. A thin tile has one product along its thin axis, because its other inputs
  // are zeros.
  int height(int kind) const { return grid.kinds[kind].thin_rows ? 1 : Form::kProducts; }
  int length(int kind) const { return grid.kinds[kind].thin_columns ? 1 : Form::kProducts; }

  // Lays out the matrices of the block: the products of one transformed tap follow each other, in each of them the
  // tiles of one kind.
  void arrange() {
    int64_t row = 0;
    samples[0] = task.n, samples[1] = -1;
    for_each_tile([&](const Place& at) {
      samples[0] = at.n < samples[0] ? at.n : samples[0];
      samples[1] = at.n > samples[1] ? at.n : samples[1];
    });
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
    if (task.transformed == nullptr) return multiply_by_source();
    for (int64_t panel = begin; task.demodulate && panel < end; ++panel) {
      demodulate(panel, task.squares + panel * kWinogradPanel, task.filters);
    }
    for (int tap = 0; tap < kWinogradTaps; ++tap) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const float* transformed = task.transformed + (tap * panels + panel) * task.channels * kWinogradPanel;
        multiply_panel(tap, transformed, panel - begin, 0, task.channels);
      }
    }
  }

  // Multiplies by the panel `begin` of a weight that is not transformed, in parts that stay in the second cache.
  void multiply_by_source() {
    float* const squares = panel_memory.data + kWinogradTaps * kPartStep;
    for (int64_t first = 0; first < task.channels; first += kPart) {
      const int64_t end = first + kPart < task.channels ? first + kPart : task.channels;
      transform_panel(task.weight, begin, first, end, panel_memory.data, kPartStep, task.demodulate ? squares : nullptr,
                      kWinogradPanel);
      for (int tap = 0; tap < kWinogradTaps; ++tap) {
        multiply_panel(tap, panel_memory.data + tap * kPartStep, 0, first, end - first);
      }
    }
    if (task.demodulate) demodulate(begin, squares, kWinogradPanel);
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

  // Computes the demodulation coefficients of a panel of the group from the squares of its kernels, [I, pitch].
  void demodulate(int64_t panel, const float* squares, int64_t pitch) {
    const int64_t count = winograd_filters_of(panel, task.filters);
    for (int64_t n = samples[0]; n <= samples[1]; ++n) {
      const float* styles = of_sample(task.in_scale, n);
      float* to = coefficients.data + n * width + (panel - begin) * kWinogradPanel;
      for (int64_t f = 0; f < count; ++f) to[f] = 0;
      for (int64_t i = 0; i < task.channels; ++i) {
        const float square = styles == nullptr ? 1.0f : styles[i] * styles[i];
        for (int64_t f = 0; f < count; ++f) to[f] += squares[i * pitch + f] * square;
      }
      for (int64_t f = 0; f < count; ++f) to[f] = 1 / std::sqrt(to[f] + task.eps);
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
    const float* shift = of_sample(task.shift, n);
    const float* slopes = of_sample(task.slope, n);
    const int64_t pixel = top * task.out_w + left;
    const float* noise = task.noise == nullptr ? nullptr : task.noise + n * task.noise_stride_n + pixel;
    T* image = static_cast<T*>(task.y) + (n * task.out_h * task.out_w + pixel) * o;
    const float* from = products + tile.index * width;
    const int64_t stop = (begin + group < end ? begin + group : end) * kWinogradPanel, last = stop < o ? stop : o;
    for (int64_t first = begin * kWinogradPanel; first < last; first += kLanes) {
      const int64_t lanes = o - first, column = first - begin * kWinogradPanel;
      const Values factor =
          task.demodulate ? load_part(coefficients.data + n * width + column, lanes) : part_or(scale, first, lanes, 1);
      const Values term = part_or(shift, first, lanes, 0);
      const Values slope = part_or(slopes, first, lanes, task.alpha);
      Values half[Form::kOut * Form::kProducts];
      for (int j = 0; j < Form::kProducts; ++j) {
        Values sums[Form::kProducts] = {};
        for (int i = 0; i < Form::kProducts; ++i) {
          if (!kWhole && (i >= rows || j >= columns)) continue;
          sums[i] = V::load(from + product_of[tile.kind][i * Form::kProducts + j] + column).v;
        }
        Form::transform_output(sums, half + j, Form::kProducts);
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
  const Scratch<float> panel_memory;  // a part of a transformed panel, and the squares of the panel's kernels
  const Scratch<float> coefficients;  // of the demodulation, [N, width]
  float* const inputs;                // matrices of `depth` columns
  float* const products;              // matrices of `width` columns
  int64_t block = 0;                  // of tiles
  int64_t samples[2];                 // the first and the last one that the block has tiles of
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

}  // namespace posgan_fast::PF_ISA
