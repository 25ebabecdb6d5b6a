// The gradient of a weight by Winograd's algorithm on the CPU: transformed tiles of the input and of the results'
// gradient are multiplied with each other. Compiled once per instruction set (PF_ISA).
#include "winograd3x3_transforms.h"

namespace posgan_fast::PF_ISA {
namespace {

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

void winograd3x3_gradient(const WinogradGradientTask& task, int64_t, int64_t) {
  if (task.form == WinogradForm::kPlain) return compute_gradients<Plain>(task);
  if (task.form == WinogradForm::kDown) return compute_gradients<Down>(task);
  compute_gradients<Up>(task);
}

}  // namespace posgan_fast::PF_ISA
