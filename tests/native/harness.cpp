// Runs the CUDA kernel bodies on the host, on numpy arrays. Half precision is passed as uint16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "bias_act.cuh"
#include "epilogue2d_backward.cuh"
#include "epilogue2d_fir4.cuh"
#include "launch_tables.cuh"
#include "modulated_conv2d.cuh"
#include "modulated_factors_backward.cuh"
#include "prologue2d.cuh"

namespace py = pybind11;
using namespace posgan_fast;

namespace {

template <typename Body>
void with_dtype(const std::string& dtype, const Body& body) {
  if (dtype == "float16") return body(Half{});
  if (dtype == "bfloat16") return body(BFloat16{});
  if (dtype == "float32") return body(float{});
  if (dtype == "float64") return body(double{});
  throw py::value_error("dtype " + dtype);
}

void host_launch(dim3 grid, dim3 block, size_t shared_bytes, auto kernel, const auto&... arguments) {
  if (shared_bytes > size_t(kSharedLimit)) throw py::value_error("shared memory");
  py::gil_scoped_release release;
  host::launch(grid, block, shared_bytes, kernel, arguments...);
}

auto launch_elementwise(int threads) {
  return [=](int64_t blocks, auto kernel, const auto&... arguments) {
    host_launch(dim3{unsigned(blocks)}, dim3{unsigned(threads)}, 0, kernel, arguments...);
  };
}

constexpr auto kKernelNames = kLaunchKernelNames;  // of Upfirdn2dKernel

Upfirdn2dParams params(const py::tuple& x_shape, const py::tuple& y_shape, py::tuple taps, std::pair<int, int> up,
                       std::pair<int, int> down, std::pair<int, int> pad0, bool flip, double gain) {
  Upfirdn2dParams p;
  const auto size = [](const py::tuple& shape, int d) { return shape[size_t(d)].cast<int64_t>(); };
  p.x = {size(x_shape, 3), size(y_shape, 3), up.first, down.first, pad0.first, taps[taps.size() - 1].cast<int>()};
  p.y = {size(x_shape, 2), size(y_shape, 2), up.second, down.second, pad0.second, taps[0].cast<int>()};
  p.n = size(x_shape, 0);
  p.c = size(x_shape, 1);
  p.separable = taps.size() == 1;
  p.flip = flip;
  p.gain = gain;
  return p;
}

void set_strides(Upfirdn2dParams& p, const py::array& x, const py::array& y) {
  const auto stride = [](const py::array& a, int d) { return int64_t(a.strides(d)) / int64_t(a.itemsize()); };
  p.in_stride_n = stride(x, 0), p.in_stride_c = stride(x, 1), p.in_stride_h = stride(x, 2),
  p.in_stride_w = stride(x, 3);
  p.out_stride_n = stride(y, 0), p.out_stride_c = stride(y, 1), p.out_stride_h = stride(y, 2);
  p.out_stride_w = stride(y, 3);
  p.channels_last = p.out_stride_w != 1;
}

// Runs the kernel of this name, or chooses one if it is empty. Returns the name of the kernel that ran.
std::string upfirdn2d(py::array x, py::array f, py::array y, std::pair<int, int> up, std::pair<int, int> down,
                      std::pair<int, int> pad0, bool flip, double gain, const std::string& dtype,
                      const std::string& kernel, std::array<int, 5> tiling, int64_t max_grid_y) {
  Upfirdn2dParams p = params(x.attr("shape"), y.attr("shape"), f.attr("shape"), up, down, pad0, flip, gain);
  set_strides(p, x, y);
  std::string ran;
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    if (x.itemsize() != sizeof(T) || f.itemsize() != sizeof(acc_t<T>)) throw py::value_error("item size");
    const T* const from = static_cast<const T*>(x.data());
    T* const to = static_cast<T*>(y.mutable_data());
    Upfirdn2dKernel chosen = choose_kernel(from, to, p);
    for (int k = 0; k < 4; ++k) {
      if (kernel == kKernelNames[k]) chosen = Upfirdn2dKernel(k);
    }
    ran = kKernelNames[int(chosen)];
    const Upfirdn2dTiling t{tiling[0], tiling[1], tiling[2], tiling[3], tiling[4]};
    run_upfirdn2d(from, static_cast<const acc_t<T>*>(f.data()), to, p, chosen, t, max_grid_y,
                  [](const auto&... launch) { host_launch(launch...); });
  });
  return ran;
}

// Returns what the launch table makes of a dense problem: (kernel, grid, block, shared bytes).
py::tuple upfirdn2d_plan(const py::tuple& x_shape, const py::tuple& y_shape, const py::tuple& taps,
                         std::pair<int, int> up, std::pair<int, int> down, bool channels_last, const std::string& dtype,
                         int sm) {
  Upfirdn2dParams p = params(x_shape, y_shape, taps, up, down, {0, 0}, false, 1);
  const int64_t c = p.c;
  p.channels_last = channels_last;
  p.in_stride_w = p.out_stride_w = channels_last ? c : 1;
  p.in_stride_c = channels_last ? 1 : p.x.in * p.y.in;
  p.out_stride_c = channels_last ? 1 : p.x.out * p.y.out;
  p.in_stride_h = p.x.in * p.in_stride_w;
  p.out_stride_h = p.x.out * p.out_stride_w;
  p.in_stride_n = p.x.in * p.y.in * c;
  p.out_stride_n = p.x.out * p.y.out * c;
  py::tuple plan;
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    T* const aligned = nullptr;
    const Upfirdn2dKernel kernel = choose_kernel<T>(aligned, aligned, p);
    const auto record = [&](dim3 grid, dim3 block, size_t shared_bytes, auto, const auto&...) {
      plan = py::make_tuple(kKernelNames[int(kernel)], py::make_tuple(grid.x, grid.y, grid.z),
                            py::make_tuple(block.x, block.y, block.z), shared_bytes);
    };
    run_upfirdn2d<T>(aligned, nullptr, aligned, p, kernel, upfirdn2d_tiling(sm, kernel, p), kMaxGridY, record);
  });
  return plan;
}

void bias_act(py::array x, std::optional<py::array> b, std::optional<py::array> ref, std::optional<py::array> dy,
              py::array out, int64_t step, int grad, int act, double alpha, double gain, double clamp,
              const std::string& dtype, int threads) {
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const auto data = [](const std::optional<py::array>& a) {
      if (a && a->itemsize() != sizeof(T)) throw py::value_error("item size");
      return a ? static_cast<const T*>(a->data()) : nullptr;
    };
    BiasActParams p;
    p.numel = x.size();
    p.step = step;
    p.channels = b ? b->size() : 0;
    p.alpha = alpha;
    p.gain = gain;
    p.clamp = clamp;
    run_bias_act(data(x), data(b), data(ref), data(dy), static_cast<T*>(out.mutable_data()), p, grad, Act(act), threads,
                 launch_elementwise(threads));
  });
}

// Returns whether the vectorized kernel ran.
bool prologue2d(py::array x, std::optional<py::array> residual, std::optional<py::array> styles,
                std::optional<py::array> border, std::optional<py::array> columns, std::optional<py::array> rows,
                py::array y, int64_t left, int64_t top, int mode, bool concat, bool height_first, bool channels_last,
                const std::string& dtype, int threads) {
  const auto stride = [](const py::array& a, int d) { return int64_t(a.strides(d)) / int64_t(a.itemsize()); };
  const auto strides = [&](const py::array& a) {
    return Prologue2dParams::Strides{stride(a, 0), stride(a, 1), stride(a, 2), stride(a, 3)};
  };
  Prologue2dParams p{};
  p.n = x.shape(0), p.c = x.shape(1), p.h = x.shape(2), p.w = x.shape(3);
  p.out_c = y.shape(1), p.out_h = y.shape(2), p.out_w = y.shape(3);
  p.left = left, p.top = top;
  p.border = Border(mode);
  p.concat = concat, p.height_first = height_first, p.channels_last = channels_last;
  p.x = strides(x);
  if (residual) p.residual = strides(*residual);
  if (columns) {
    p.half = columns->shape(0);
    p.columns = {stride(*columns, 0), stride(*columns, 1)};
    p.rows = {stride(*rows, 0), stride(*rows, 1)};
  }
  if (border && border->ndim() == 3) {
    p.ring = Ring::stored_alone(p.h, p.w, stride(*border, 0), stride(*border, 1), stride(*border, 2));
  } else if (border) {
    const auto b = strides(*border);
    p.ring = Ring::in_map(border->shape(2), border->shape(3), p.h, p.w, b.n, b.c, b.h, b.w);
  }
  bool vectorized = false;
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const auto data = [](const std::optional<py::array>& a, auto element) -> const decltype(element)* {
      if (a && a->itemsize() != sizeof(element)) throw py::value_error("item size");
      return a ? static_cast<const decltype(element)*>(a->data()) : nullptr;
    };
    const acc_t<T> wide = 0;
    const Prologue2dPointers<T> pointers = {data(x, T{}),
                                            data(residual, T{}),
                                            data(border, T{}),
                                            data(styles, wide),
                                            data(columns, wide),
                                            data(rows, wide),
                                            static_cast<T*>(y.mutable_data())};
    vectorized = run_prologue2d(pointers, p, threads, launch_elementwise(threads));
  });
  return vectorized;
}

// x and y are dense [N, C, H, W]; noise is [1, 1, H, W] or [N, 1, H, W].
void epilogue2d(py::array x, std::optional<py::array> scale, std::optional<py::array> noise, std::optional<py::array> b,
                std::optional<py::array> post_scale, py::array y, bool channels_last, int act, double alpha,
                double gain, double clamp, const std::string& dtype, int threads) {
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const auto data = [](const std::optional<py::array>& a, size_t itemsize) -> const void* {
      if (a && size_t(a->itemsize()) != itemsize) throw py::value_error("item size");
      return a ? a->data() : nullptr;
    };
    const int64_t n = y.shape(0), c = y.shape(1), h = y.shape(2), w = y.shape(3);
    const Epilogue2dParams p{n, c, h, w, noise && noise->shape(0) > 1 ? h * w : 0, channels_last, alpha, gain, clamp};
    const auto wide = [&](const std::optional<py::array>& a) {
      return static_cast<const acc_t<T>*>(data(a, sizeof(acc_t<T>)));
    };
    const Epilogue2dFactors<T> factors = {wide(scale), wide(noise), static_cast<const T*>(data(b, sizeof(T))),
                                          wide(post_scale)};
    run_epilogue2d(static_cast<const T*>(data(x, sizeof(T))), factors, static_cast<T*>(y.mutable_data()), p, Act(act),
                   threads, launch_elementwise(threads));
  });
}

// The images are dense [N, C, H, W]; noise is [1, 1, H, W] or [N, 1, H, W], channel_sums [1 or 2, N, tiles, C].
void epilogue2d_backward(py::array dy, std::optional<py::array> y, std::optional<py::array> x,
                         std::optional<py::array> scale, std::optional<py::array> noise, std::optional<py::array> b,
                         std::optional<py::array> dx, std::optional<py::array> channel_sums,
                         std::optional<py::array> pixel_sums, int64_t tile, bool channels_last, int act, double alpha,
                         double gain, double clamp, const std::string& dtype, int threads) {
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const auto data = [](std::optional<py::array>& a, auto element) -> decltype(element)* {
      if (a && a->itemsize() != sizeof(element)) throw py::value_error("item size");
      return a ? static_cast<decltype(element)*>(a->mutable_data()) : nullptr;
    };
    const int64_t n = dy.shape(0), c = dy.shape(1), pixels = dy.shape(2) * dy.shape(3);
    const bool products = channel_sums && channel_sums->shape(0) == 2;
    const Epilogue2dBackwardParams p{n,
                                     c,
                                     pixels,
                                     noise && noise->shape(0) > 1 ? pixels : 0,
                                     tile,
                                     ceil_div(pixels, tile),
                                     channels_last,
                                     products,
                                     alpha,
                                     gain,
                                     clamp};
    std::optional<py::array> gradient = dy;
    const Epilogue2dBackwardPointers<T> pointers = {
        data(gradient, T{}),  data(y, T{}),     data(x, T{}),  data(b, T{}),
        data(scale, A{}),     data(noise, A{}), data(dx, T{}), data(channel_sums, A{}),
        data(pixel_sums, A{})};
    run_epilogue2d_backward(pointers, p, Act(act), threads, [](const auto&... launch) { host_launch(launch...); });
  });
}

// The values of an array of one type, null for None.
template <typename E>
E* values(std::optional<py::array>& a) {
  if (a && a->itemsize() != sizeof(E)) throw py::value_error("item size");
  return a ? static_cast<E*>(a->mutable_data()) : nullptr;
}

int64_t stride(const py::array& a, int dim) { return int64_t(a.strides(dim)) / int64_t(a.itemsize()); }

// weight is [O, I, taps], in memory also [O, taps, I], styles [N, I] with any stride between samples; out [O, I, taps]
// or with fold [N, O, I, taps] has any strides.
void modulated_factors(std::optional<py::array> weight, std::optional<py::array> styles, std::optional<py::array> bias,
                       std::optional<py::array> noise, std::optional<py::array> strength, std::optional<py::array> out,
                       std::optional<py::array> cast_bias, std::optional<py::array> dcoefs,
                       std::optional<py::array> scaled_styles, std::optional<py::array> scaled_noise,
                       std::optional<py::array> divisors, double eps, bool fold, bool flip, bool in_range,
                       const std::string& dtype, int threads) {
  const int first = fold ? 1 : 0;
  const ModulatedFactorsParams p{styles->shape(0),
                                 weight->shape(0),
                                 weight->shape(1),
                                 int(weight->shape(2)),
                                 stride(*styles, 0),
                                 stride(*weight, 1),
                                 stride(*weight, 2),
                                 noise ? int64_t(noise->size()) : 0,
                                 fold ? stride(*out, 0) : 0,
                                 stride(*out, first),
                                 stride(*out, first + 1),
                                 stride(*out, first + 2),
                                 eps,
                                 fold,
                                 flip,
                                 in_range};
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const ModulatedFactorsPointers<T> pointers = {
        values<A>(weight),        values<A>(styles),       values<A>(bias),      values<A>(noise),
        values<A>(strength),      values<T>(out),          values<T>(cast_bias), values<A>(dcoefs),
        values<A>(scaled_styles), values<A>(scaled_noise), values<A>(divisors)};
    run_modulated_factors(pointers, p, threads, [](const auto&... launch) { host_launch(launch...); });
  });
}

// dtype is "float32" or "float64", the arrays are as for modulated_factors.
void modulated_factors_backward(std::optional<py::array> weight, std::optional<py::array> styles,
                                std::optional<py::array> dcoefs, std::optional<py::array> divisors,
                                std::optional<py::array> d_dcoefs, std::optional<py::array> d_scaled,
                                std::optional<py::array> d_weight, std::optional<py::array> d_styles,
                                const std::string& dtype, int threads) {
  const ModulatedFactorsBackwardParams p{styles->shape(0),      weight->shape(0),   weight->shape(1),
                                         int(weight->shape(2)), stride(*styles, 0), stride(*weight, 1),
                                         stride(*weight, 2)};
  with_dtype(dtype, [&](auto scalar) {
    using A = acc_t<decltype(scalar)>;
    const ModulatedFactorsBackwardPointers<A> pointers = {values<A>(weight),   values<A>(styles),   values<A>(dcoefs),
                                                          values<A>(divisors), values<A>(d_dcoefs), values<A>(d_scaled),
                                                          values<A>(d_weight), values<A>(d_styles)};
    run_modulated_factors_backward(pointers, p, threads, [](const auto&... launch) { host_launch(launch...); });
  });
}

// Runs the fir4 kernel that finishes its values; the tensors are those of upfirdn2d and epilogue2d. Returns the name of
// the kernel, an empty one if none does both.
std::string epilogue2d_fir4(py::array x, py::array f, std::optional<py::array> scale, std::optional<py::array> noise,
                            std::optional<py::array> b, std::optional<py::array> post_scale, py::array y,
                            std::pair<int, int> up, std::pair<int, int> down, std::pair<int, int> pad0, bool flip,
                            double filter_gain, int act, double alpha, double gain, double clamp,
                            const std::string& dtype, std::array<int, 5> tiling, int64_t max_grid_y) {
  Upfirdn2dParams p = params(x.attr("shape"), y.attr("shape"), f.attr("shape"), up, down, pad0, flip, filter_gain);
  set_strides(p, x, y);
  const int64_t pixels = p.y.out * p.x.out, noise_stride = noise && noise->shape(0) > 1 ? pixels : 0;
  const Epilogue2dParams e{p.n, p.c, p.y.out, p.x.out, noise_stride, p.channels_last, alpha, gain, clamp};
  std::string ran;
  with_dtype(dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const auto data = [](const std::optional<py::array>& a, auto element) -> const decltype(element)* {
      if (a && a->itemsize() != sizeof(element)) throw py::value_error("item size");
      return a ? static_cast<const decltype(element)*>(a->data()) : nullptr;
    };
    const acc_t<T> wide = 0;
    const T* const from = data(x, T{});
    T* const to = static_cast<T*>(y.mutable_data());
    const Epilogue2dFactors<T> factors = {data(scale, wide), data(noise, wide), data(b, T{}), data(post_scale, wide)};
    const Upfirdn2dKernel kernel = choose_kernel(from, to, p);
    if (!fir4_finishes(kernel, Act(act), factors)) return;
    ran = kKernelNames[int(kernel)];
    const Upfirdn2dTiling t{tiling[0], tiling[1], tiling[2], tiling[3], tiling[4]};
    run_fir4_epilogue2d(from, data(f, wide), factors, to, p, e, Act(act), kernel, t, max_grid_y,
                        [](const auto&... launch) { host_launch(launch...); });
  });
  return ran;
}

// Returns sample, channel and pixel of element i.
std::array<int64_t, 3> epilogue2d_coords_at(int64_t i, std::array<int64_t, 4> shape, bool channels_last,
                                            bool use_int32_index) {
  const Epilogue2dParams p{shape[0], shape[1], shape[2], shape[3], 0, channels_last, 0, 1, -1};
  Epilogue2dIndexing s = epilogue2d_indexing<float>(nullptr, {}, nullptr, p);
  if (s.use_int32_index && !use_int32_index) s.use_int32_index = false;
  const Epilogue2dCoords at = epilogue2d_coords(i, p, s);
  return {at.n, at.c, at.pixel};
}

}  // namespace

PYBIND11_MODULE(harness, m) {
  m.def("upfirdn2d", &upfirdn2d);
  m.def("upfirdn2d_plan", &upfirdn2d_plan);
  m.def("bias_act", &bias_act);
  m.def("prologue2d", &prologue2d);
  m.def("prologue2d_coords", [](int64_t i, std::array<int64_t, 3> sizes, bool use_int32_index) {  // C, H, W
    Prologue2dParams p{};
    p.out_c = sizes[0], p.out_h = sizes[1], p.out_w = sizes[2];
    const auto by = [&](int k) { return FastDivmod::by(use_int32_index ? sizes[size_t(k)] : 1); };
    const auto list = [](const Prologue2dCoords& at) { return py::make_tuple(at.n, at.c, at.oy, at.ox); };
    const Prologue2dIndexing nchw{0, true, true, use_int32_index, by(2), by(1), by(0)};
    const Prologue2dIndexing nhwc{0, true, true, use_int32_index, by(0), by(2), by(1)};
    return py::make_tuple(list(prologue2d_coords<false>(i, p, nchw)), list(prologue2d_coords<true>(i, p, nhwc)));
  });
  m.def("epilogue2d", &epilogue2d);
  m.def("epilogue2d_backward", &epilogue2d_backward);
  m.def("modulated_factors", &modulated_factors);
  m.def("modulated_factors_backward", &modulated_factors_backward);
  m.def("epilogue2d_fir4", &epilogue2d_fir4);
  m.def("epilogue2d_coords", &epilogue2d_coords_at);
  m.def("skip_barrier", [](int index) { host::skipped_barrier = index; });
  m.def("quotient", [](uint32_t n, int64_t d) { return FastDivmod::by(d).quotient(n); });
  m.def("bias_coords", [](int64_t i, int64_t step, int64_t channels, bool use_int32_index) {
    BiasActParams p{};
    p.step = step;
    p.channels = channels;
    const BiasActIndexing s{true, use_int32_index, BiasPattern::kPerElement, FastDivmod::by(use_int32_index ? step : 1),
                            FastDivmod::by(channels)};
    const BiasCoords at = bias_coords(i, p, s);
    return std::make_pair(at.channel, at.left);
  });
  m.def("parse_launch_overrides", [](const std::string& text) { return parse_launch_overrides(text).rows; });
  m.def("reread_launch_overrides", &reread_launch_overrides);
  m.def("describe_launch_tables", &describe_launch_tables);
  m.def("elementwise_threads", &elementwise_threads);
  m.def("upfirdn2d_table", [] {
    py::list rows;
    for (const Upfirdn2dTableRow& r : kUpfirdn2dTable) {
      const Upfirdn2dTiling& t = r.tiling;
      const std::array<int, 5> numbers = {t.threads, t.max_inner_threads, t.min_rows, t.max_rows, t.resident_threads};
      rows.append(py::make_tuple(r.sm, kKernelNames[int(r.kernel)], r.width, numbers, r.measured));
    }
    return rows;
  });
  m.def("elementwise_table", [] {
    py::list rows;
    for (const ElementwiseTableRow& r : kElementwiseTable)
      rows.append(py::make_tuple(r.sm, r.numel, r.threads, r.measured));
    return rows;
  });
}
