// Runs Winograd's kernels on random sizes in buffers without a byte to spare, for the sanitizers. Their values are held
// to float64 in test_winograd3x3.py.
#include <cstdio>
#include <random>
#include <vector>

#define PF_ISA checked
namespace posgan_fast {
struct WinogradTask;
struct WinogradWeightTask;
struct WinogradGradientTask;
namespace checked {
void winograd3x3(const WinogradTask& task, int64_t, int64_t);
void winograd3x3_weight(const WinogradWeightTask& task, int64_t begin, int64_t end);
void winograd3x3_gradient(const WinogradGradientTask& task, int64_t, int64_t);
}  // namespace checked
}  // namespace posgan_fast
#include "../../csrc/winograd3x3.cpp"
#include "../../csrc/winograd3x3_gradient.cpp"
#include "../../csrc/winograd3x3_weight.cpp"

namespace posgan_fast {
namespace {

std::mt19937 random_bits(1);

int pick(int low, int high) { return low + int(random_bits() % unsigned(high - low + 1)); }

std::vector<float> ones(int64_t size) { return std::vector<float>(size_t(size), 1.0f); }

WinogradTask draw_sizes() {
  WinogradTask t = {};
  t.form = WinogradForm(pick(0, 2)), t.dtype = Dtype::kFloat;
  t.n = pick(1, 2), t.h = pick(3, 14), t.w = pick(3, 14), t.filters = pick(1, 70);
  t.channels = pick(1, 40) + (pick(0, 9) == 0 ? 128 : 0);
  t.padding = t.form == WinogradForm::kUp ? 1 : pick(0, 2);
  t.border = t.form != WinogradForm::kUp && pick(0, 1) == 1 ? Border::kReflect : Border::kZeros;
  const auto out = [&](int64_t size) {
    if (t.form == WinogradForm::kUp) return 2 * size + 1;
    return (size + 2 * t.padding - 3) / (t.form == WinogradForm::kDown ? 2 : 1) + 1;
  };
  t.out_h = out(t.h), t.out_w = out(t.w);
  return t;
}

void run_gradient(const WinogradTask& t, const float* x, const float* y) {
  auto dw = ones(t.filters * t.channels * 9);
  int64_t next = 0;
  const int64_t channel_part = pick(0, 1) == 1 ? 96 : 12, filter_part = pick(0, 1) == 1 ? 96 : 32;
  const int64_t items = ceil_div(t.channels, channel_part) * ceil_div(t.filters, filter_part);
  const WinogradGradientTask task = {t.form,       x,           y,       dw.data(), t.n,       t.h,
                                     t.w,          t.channels,  t.out_h, t.out_w,   t.filters, t.padding,
                                     channel_part, filter_part, items,   &next};
  checked::winograd3x3_gradient(task, 0, 1);
}

void run_case() {
  WinogradTask t = draw_sizes();
  const auto x = ones(t.n * t.h * t.w * t.channels), weight = ones(t.filters * t.channels * 9);
  const auto noise = ones(t.out_h * t.out_w), in_scale = ones(t.n * t.channels), scale = ones(t.n * t.filters);
  auto y = ones(t.n * t.out_h * t.out_w * t.filters), squares = ones(t.channels * t.filters);
  auto transformed = ones(kWinogradTaps * winograd_panels(t.filters) * t.channels * kWinogradPanel);
  const WinogradWeightTask weights = {
      t.form, weight.data(),  transformed.data(), squares.data(), t.filters, t.channels, 9 * t.channels, 9, 3,
      1,      pick(0, 1) == 1};
  checked::winograd3x3_weight(weights, 0, winograd_panels(t.filters));
  t.x = x.data(), t.y = y.data(), t.noise = noise.data();
  t.in_scale = {in_scale.data(), t.channels}, t.scale = {scale.data(), t.filters}, t.shift = {scale.data(), 0};
  t.alpha = 0.2f, t.gain = 1.0f, t.clamp = 9.0f;
  t.blocks = 1;
  t.blocks = pick(1, int(winograd_grid(t).tiles(0))), t.splits = pick(1, int(winograd_panels(t.filters))),
  t.nontemporal = pick(0, 1) == 1;
  t.transformed = transformed.data();
  if (pick(0, 1) == 1) {  // transforms the weight itself
    t.transformed = nullptr, t.weight = weights, t.demodulate = true, t.eps = 1e-8f;
  }
  int64_t next = 0;
  t.items = t.splits * t.blocks, t.next = &next;
  checked::winograd3x3(t, 0, 1);
  const std::vector<BFloat16> half_x(x.size());
  std::vector<BFloat16> half_y(y.size());
  WinogradTask half = t;
  half.dtype = Dtype::kBFloat16, half.x = half_x.data(), half.y = half_y.data(), next = 0;
  checked::winograd3x3(half, 0, 1);
  run_gradient(t, x.data(), y.data());
}

}  // namespace
}  // namespace posgan_fast

int main() {
  for (int i = 0; i < 300; ++i) posgan_fast::run_case();
  std::puts("winograd3x3: passed");
}
