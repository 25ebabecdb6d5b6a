// Formulas of bias_act, shared by the CPU and CUDA kernels. No torch.
//
//   order 0:  y  = clamp(gain * act(x + b))
//   order 1:  dx = g * gain * act'(x + b) * inside
//   order 2:  d  = g * dy * gain * act''(x + b) * inside,   inside = -clamp < gain * act(x + b) < clamp
//
// clamp < 0 stands for none. relu and lrelu read their slope off the output y, so that the input need not be kept; the
// others work from the input. The caller rounds clamp to the storage type, so that a clamped y equals it.
#pragma once

#include <type_traits>

#include "scalar.h"

namespace posgan_fast {

enum class Act : int { kLinear = 1, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

PF_HD bool is_act(int64_t act) { return act >= int64_t(Act::kLinear) && act <= int64_t(Act::kSwish); }

// Calls body with act as a compile-time constant, a std::integral_constant.
template <typename Body>
static inline auto with_act(Act act, const Body& body) {
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

// A smooth activation and its first two derivatives at one point.
template <typename A>
struct Jet {
  A value, first, second;
};

// Math supplies exp, expm1 and log1p for the type at hand: libm on the device, polynomials that vectorise on the CPU.
template <Act kAct, typename Math, typename A>
PF_HD Jet<A> jet(A v) {
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

template <Act kAct, typename A>
PF_HD A slope(A sign, A alpha) {
  if constexpr (kAct == Act::kLinear) return A(1);
  return sign > 0 ? A(1) : (kAct == Act::kLrelu ? alpha : A(0));
}

constexpr PF_HD bool piecewise_linear(Act act) {
  return act == Act::kLinear || act == Act::kRelu || act == Act::kLrelu;
}

// One element. order 0: x is the input; order 1: x is the gradient; order 2: x is the second incoming gradient and dy
// the first. b is read where the formula needs the input (order 0, and later orders reading it).
template <Act kAct, int kOrder, bool kReadsOutput, typename Math, typename A>
PF_HD A bias_act_point(A x, A b, A ref, A dy, A alpha, A gain, A clamp) {
  A value, first, second;
  if constexpr (kOrder == 1 && kReadsOutput) {
    value = ref;
    first = slope<kAct>(gain < 0 ? -ref : ref, alpha);  // their product could underflow
    second = 0;
  } else {
    const A v = (kOrder == 0 ? x : ref) + b;
    if constexpr (piecewise_linear(kAct)) {
      first = slope<kAct>(v, alpha);
      value = gain * (kAct == Act::kRelu ? (v < 0 ? A(0) : v) : v * first);
      second = 0;
    } else {
      const Jet<A> j = jet<kAct, Math>(v);
      value = gain * j.value;
      first = j.first;
      second = j.second;
    }
  }
  if constexpr (kOrder == 0) {
    if (clamp < 0) return value;
    const A low = value < -clamp ? -clamp : value;  // these comparisons keep NaN
    return low > clamp ? clamp : low;
  }
  const bool inside = clamp < 0 || (value > -clamp && value < clamp);
  const A slope_here = kOrder == 1 ? gain * first : dy * (gain * second);
  return inside ? x * slope_here : A(0);
}

// What ref holds at order 1: the output, unless a negative slope would hide the sign of the input.
PF_HD bool reads_output(Act act, double alpha) { return act == Act::kRelu || (act == Act::kLrelu && alpha >= 0); }

}  // namespace posgan_fast
