// Transforms whole weights for Winograd's convolution on the CPU. Compiled once per instruction set (PF_ISA).
#include "winograd3x3_panels.h"

namespace posgan_fast::PF_ISA {

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
