// Formulas and parameters of bias_act, shared by the CPU and CUDA kernels. No torch.
//
//   grad 0:  y  = clamp(gain * act(x + b))
//   grad 1:  dx = g * gain * act'(x + b) * inside
//   grad 2:  d  = g * dy * gain * act''(x + b) * inside,   inside = -clamp < gain * act(x + b) < clamp
//
// A negative clamp means none. The gradients of relu and lrelu read the slope from the output y, so that the input need
// not be kept; those of the others read the input. The caller rounds clamp to the storage type, so that a clamped y
// equals it.
#pragma once

#include <type_traits>

#include "scalar.h"

namespace posgan_fast {

enum class Act : int { kLinear = 1, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

PF_HD bool is_act(int64_t act) { return act >= int64_t(Act::kLinear) && act <= int64_t(Act::kSwish); }

// Calls body with act as a std::integral_constant.
template <typename Body>
static inline auto dispatch_act(Act act, const Body& body) {
  switch (act) {
    case Act::kLinear:
      return body(std::integral_constant<Act, Act::kLinear>());
    case Act::kRelu:
      return body(std::integral_constant<Act, Act::kRelu>());
    case Act::kLrelu:
      return body(std::integral_constant<Act, Act::kLrelu>());
    case Act::kTanh:
      return body(std::integral_constant<Act, Act::kTanh>());
    case Act::kSigmoid:
      return body(std::integral_constant<Act, Act::kSigmoid>());
    case Act::kElu:
      return body(std::integral_constant<Act, Act::kElu>());
    case Act::kSelu:
      return body(std::integral_constant<Act, Act::kSelu>());
    case Act::kSoftplus:
      return body(std::integral_constant<Act, Act::kSoftplus>());
    case Act::kSwish:
      break;
  }
  return body(std::integral_constant<Act, Act::kSwish>());
}

struct BiasActParams {
  int64_t numel;
  int64_t step;      // elements between neighbours along the bias dimension
  int64_t channels;  // length of the bias, 0 without one
  double alpha, gain, clamp;
};

constexpr double kSeluScale = 1.0507009873554805;
constexpr double kSeluAlpha = 1.6732632423543772;

template <typename A>
struct ActDerivatives {
  A value, first, second;
};

// A smooth activation and its first two derivatives at v. Math supplies exp, expm1 and log1p.
template <Act kAct, typename Math, typename A>
PF_HD ActDerivatives<A> act_derivatives(A v) {
  if constexpr (kAct == Act::kTanh) {
    const A e = Math::exp(A(-2) * (v < 0 ? -v : v));
    const A magnitude = -Math::expm1(A(-2) * (v < 0 ? -v : v)) / (1 + e);
    const A t = v < 0 ? -magnitude : magnitude;
    const A first = 4 * e / ((1 + e) * (1 + e));
    return {t, first, A(-2) * t * first};
  } else if constexpr (kAct == Act::kElu || kAct == Act::kSelu) {
    const A scale = kAct == Act::kSelu ? A(kSeluScale) : A(1);
    const A alpha = kAct == Act::kSelu ? A(kSeluScale * kSeluAlpha) : A(1);
    const A negative = v > 0 ? A(0) : v;  // keeps NaN
    const A e = alpha * Math::exp(negative);
    return {v > 0 ? scale * v : alpha * Math::expm1(negative), v > 0 ? scale : e, v > 0 ? A(0) : e};
  } else {
    const A e = Math::exp(v < 0 ? v : -v);
    const A s = (v < 0 ? e : A(1)) / (1 + e);
    const A c = (v < 0 ? A(1) : e) / (1 + e);  // 1 - s without cancellation
    if constexpr (kAct == Act::kSigmoid) return {s, s * c, s * c * (c - s)};
    if constexpr (kAct == Act::kSoftplus) return {(v > 0 ? v : A(0)) + Math::log1p(e), s, s * c};
    return {v * s, s * (1 + v * c), s * c * (2 + v * (c - s))};  // swish
  }
}

// The slope of a piecewise linear activation at an input, or before an output, of this sign.
template <Act kAct, typename A>
PF_HD A slope(A sign, A alpha) {
  if constexpr (kAct == Act::kLinear) return A(1);
  return sign > 0 ? A(1) : (kAct == Act::kLrelu ? alpha : A(0));
}

constexpr PF_HD bool piecewise_linear(Act act) {
  return act == Act::kLinear || act == Act::kRelu || act == Act::kLrelu;
}

// Whether the gradient reads its slope from the output, which ref then holds. A negative slope would hide the sign of
// the input.
PF_HD bool reads_output(Act act, double alpha) { return act == Act::kRelu || (act == Act::kLrelu && alpha >= 0); }

// Calls body with act, grad and whether the gradient reads the output as std::integral_constants.
template <typename Body>
static inline auto dispatch_bias_act(Act act, int grad, double alpha, const Body& body) {
  return dispatch_act(act, [&](auto constant) {
    constexpr Act kAct = constant;
    if (grad == 0) return body(constant, std::integral_constant<int, 0>(), std::false_type());
    if (grad == 2) return body(constant, std::integral_constant<int, 2>(), std::false_type());
    if constexpr (kAct == Act::kRelu || kAct == Act::kLrelu) {
      if (reads_output(kAct, alpha)) return body(constant, std::integral_constant<int, 1>(), std::true_type());
    }
    return body(constant, std::integral_constant<int, 1>(), std::false_type());
  });
}

// One element of the result. x is the input at grad 0, the incoming gradient g at grad 1 and 2. Formulas that read the
// output ignore b.
template <Act kAct, int kGrad, bool kReadsOutput, typename Math, typename A>
PF_HD A bias_act_element(A x, A b, A ref, A dy, A alpha, A gain, A clamp) {
  A value, first, second;
  if constexpr (kGrad == 1 && kReadsOutput) {
    value = ref;
    first = slope<kAct>(gain < 0 ? -ref : ref, alpha);  // gain * ref could underflow
    second = 0;
  } else {
    const A v = (kGrad == 0 ? x : ref) + b;
    if constexpr (piecewise_linear(kAct)) {
      first = slope<kAct>(v, alpha);
      value = gain * (kAct == Act::kRelu ? (v < 0 ? A(0) : v) : v * first);
      second = 0;
    } else {
      const ActDerivatives<A> d = act_derivatives<kAct, Math>(v);
      value = gain * d.value;
      first = d.first;
      second = d.second;
    }
  }
  if constexpr (kGrad == 0) {
    if (clamp < 0) return value;
    const A low = value < -clamp ? -clamp : value;  // these comparisons keep NaN
    return low > clamp ? clamp : low;
  }
  const bool inside = clamp < 0 || (value > -clamp && value < clamp);
  const A slope_here = kGrad == 1 ? gain * first : dy * (gain * second);
  return inside ? x * slope_here : A(0);
}

// The CPU kernel computes the elements [begin, end).
struct BiasActTask {
  BiasActParams params;
  Dtype dtype;
  Act act;
  int grad;
  const void *x, *b, *ref, *dy;  // b null without a bias, ref and dy x where grad needs none
  void* out;
  bool nontemporal;  // store past the caches: the result is too large to be found there again
};

}  // namespace posgan_fast
