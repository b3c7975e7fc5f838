// How far computed numbers may be from the oracle's: the bounds that
// docs/numerics.md states, and where they come from.
//
// With u = 2^-24, every f32 operation is off by a factor of 1 +- u at most.
// Errors of n additions grow as sqrt(n) u where their signs are random; the sum
// that really has such errors is shorter, since long sums are made of short
// ones. All terms below are such typical sizes, and kSafety is the distance
// between typical and worst.
//
// One score. Its dot product, of head_dim products whose absolute values sum to
// A (scaled), is off by sqrt(head_dim) u A, its scaling by 2 u A. Soft cap is
// flatter than 1 everywhere, so passes errors on no larger, and adds 4 ulp of
// what it gives. ALiBi and bias add an error of u times what they add up. The
// error of a score is the relative error of its weight, e.
//
// One row. The output is a mean of values by weight, so that an error of e[j]
// moves it by weight[j] * e[j] * |value| at most; exp, the division, and sums
// over the keys are relative errors of their own. lse moves by the sum of
// weight[j] * e[j], and by u |lse| when it is rounded.
//
// bf16 products. The inputs are those that the oracle gets, rounded. Each
// weight is rounded, by 2^-8 of it at most; of n equal weights the errors
// average out as 1 / sqrt(n), which for any weights is their Euclidean norm.
#ifndef ATTND_TESTS_SUPPORT_TOLERANCE_H_
#define ATTND_TESTS_SUPPORT_TOLERANCE_H_

#include <cmath>

#include "core/attention_params.h"
#include "core/reference_attention.h"

namespace attnd::testing {

inline constexpr double kSafety = 4;
inline constexpr double kF32Unit = 0x1p-24;
inline constexpr double kF16Unit = 0x1p-11;
inline constexpr double kBF16Unit = 0x1p-8;

inline double Root(int64_t n) { return std::sqrt(static_cast<double>(n)); }

// Of a dot product of `n` products whose absolute values sum to `magnitude`.
inline double DotError(int64_t n, double magnitude) {
  return kF32Unit * (Root(n) + 2) * magnitude;
}

// Of the score of one key, and so the relative error of its weight.
inline double ScoreError(const AttentionParams& params,
                         const ReferenceKey& key) {
  double error = DotError(params.head_dim, key.dot_magnitude);
  if (params.soft_cap != 0 || key.added_magnitude != 0) {
    const double capped =
        params.soft_cap != 0
            ? std::min(key.dot_magnitude, double{params.soft_cap})
            : key.dot_magnitude;
    error += 4 * kF32Unit * (capped + key.added_magnitude);
  }
  return error;
}

// Whether products may be of bf16: always then with PRECISION_BF16, and where
// every input is bf16 with PRECISION_AUTO.
inline bool MayRoundWeights(const AttentionParams& params) {
  const bool all_bf16 = params.query_dtype == DataType::kBF16 &&
                        params.key_dtype == DataType::kBF16 &&
                        params.value_dtype == DataType::kBF16;
  return params.precision == Precision::kBF16 ||
         (params.precision == Precision::kAuto && all_bf16);
}

struct RowBound {
  double output = 0;  // times the row's largest |value|
  double lse = 0;
};

// `sink` is -inf where there is none.
inline RowBound BoundOf(const AttentionParams& params, const ReferenceRow& row,
                        double sink) {
  double scores = 0;
  double squares = 0;
  double largest = 0;
  for (const ReferenceKey& key : row.keys) {
    if (key.weight == 0) continue;  // an infinite score has no error
    scores += key.weight * ScoreError(params, key);
    squares += key.weight * key.weight;
    largest = std::max(largest, key.dot_magnitude + key.added_magnitude);
  }
  if (std::isfinite(sink)) {
    scores +=
        std::exp(sink - row.lse) * 4 * kF32Unit * (std::abs(sink) + largest);
  }
  const auto keys = static_cast<int64_t>(row.keys.size());
  const double sums = kF32Unit * (4 + Root(keys) / 2);
  RowBound bound;
  bound.output = kSafety * (sums + scores);
  bound.lse = kSafety * (sums * (1 + std::abs(row.lse)) + scores);
  if (MayRoundWeights(params)) {
    bound.output += kBF16Unit * std::min(1.0, 2 * std::sqrt(squares));
  }
  return bound;
}

// What rounding `value` to the type of the output adds.
inline double RoundingError(DataType type, double value) {
  switch (type) {
    case DataType::kF16:
      return kF16Unit * std::max(std::abs(value), 0x1p-14);
    case DataType::kBF16:
      return kBF16Unit * std::abs(value);
    default:
      return 0;  // computed in it
  }
}

// Gradients, of row i and key j with weight P, value v, output o and gradient
// of the output g:
//   dP = g.v,  D = g.o,  dS = P (dP - D),  dq = scale * sum_j dS k,
//   dk = scale * sum_i dS q,  dv = sum_i P g
// P is exp(score - lse) anew, so off by the errors of its score and of lse. dP
// and D are dot products, D of an output that has its own error. These errors
// are shared by the keys of a row but not by the rows of a key: over keys they
// add up, over rows they add as independent numbers do.
struct PairError {
  double weight = 0;    // of P
  double grad_dot = 0;  // of dS, or with a soft cap of dS (1 - tanh^2)
};

// What PairErrorOf asks of one row and key.
struct PairGradient {
  double grad_weight = 0;            // dP
  double grad_weight_magnitude = 0;  // sum |g v|
  double mean = 0;                   // D
  double mean_magnitude = 0;         // sum |g o|
  double mean_error = 0;             // of D, from that of o
};

inline PairError PairErrorOf(const AttentionParams& params,
                             const ReferenceKey& key, const RowBound& row,
                             const PairGradient& pair) {
  const double relative =
      kSafety * (ScoreError(params, key) + 4 * kF32Unit) + row.lse;
  const double distance = std::abs(pair.grad_weight - pair.mean);
  const double dots =
      kSafety * DotError(params.v_head_dim,
                         pair.grad_weight_magnitude + pair.mean_magnitude) +
      pair.mean_error;
  PairError error;
  error.weight = key.weight * relative;
  error.grad_dot = key.weight * (relative * distance + dots);
  if (params.soft_cap != 0) {
    const double tanh = std::tanh(key.dot / double{params.soft_cap});
    error.grad_dot *= 1 - tanh * tanh;
    error.grad_dot += key.weight * distance * kSafety *
                      (2 * DotError(params.head_dim, key.dot_magnitude) /
                           double{params.soft_cap} +
                       8 * kF32Unit);
  }
  return error;
}

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_TOLERANCE_H_
