// Says how far computed numbers may differ from those of the oracle. These are
// the bounds of docs/numerics.md, and this comment derives them.
//
// With u = 2^-24, every f32 operation has a relative error of at most u. If the
// signs of the errors are random, the error of n additions grows as sqrt(n) u.
// Long sums are made of shorter ones, so their real errors are smaller. The
// terms below are such typical errors. kSafety is the factor between a typical
// error and the largest allowed one.
//
// One score: let A be the sum of the absolute values of the head_dim products,
// multiplied by the scale. The dot product then has an error of sqrt(head_dim)
// u A and the scaling one of 2 u A. A soft cap has a slope of at most 1, so it
// does not enlarge errors, and it adds 4 ulp of its result. ALiBi and bias add
// u times the numbers that they add. The error of a score is the relative error
// of its weight, e.
//
// One row: the output is the weighted mean of the values. An error e[j] changes
// it by at most weight[j] * e[j] * |value|. The exponential function, the
// division and the sums over the keys have their own relative errors. The
// errors change lse by the sum of weight[j] * e[j], and its rounding adds u
// |lse|.
//
// bf16 products: the oracle gets the same rounded inputs. Each weight is
// rounded by at most 2^-8 of its size. The errors of n equal weights average
// out like 1 / sqrt(n), which is the Euclidean norm of the weights. This norm
// is used for all weights.
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

// Returns the error of a dot product of `n` products whose absolute values add
// up to `magnitude`.
inline double DotError(int64_t n, double magnitude) {
  return kF32Unit * (Root(n) + 2) * magnitude;
}

// Returns the error of the score of one key, which is the relative error of its
// weight.
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

// Returns whether the server may compute products of bf16. It may with
// PRECISION_BF16, and with PRECISION_AUTO if all inputs are bf16.
inline bool MayRoundWeights(const AttentionParams& params) {
  const bool all_bf16 = params.query_dtype == DataType::kBF16 &&
                        params.key_dtype == DataType::kBF16 &&
                        params.value_dtype == DataType::kBF16;
  return params.precision == Precision::kBF16 ||
         (params.precision == Precision::kAuto && all_bf16);
}

struct RowBound {
  double output = 0;  // to be multiplied by the row's largest |value|
  double lse = 0;
};

// `sink` is -inf if there is no sink.
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

// Returns the error of rounding `value` to the type of the output.
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

// The errors of gradients, for row i and key j with the weight P, the value v,
// the output o and the gradient g of the output:
//   dP = g.v,  D = g.o,  dS = P (dP - D),  dq = scale * sum_j dS k,
//   dk = scale * sum_i dS q,  dv = sum_i P g
// The backward pass computes P = exp(score - lse) again, so P has the errors of
// its score and of lse. dP and D are dot products, and the output in D has its
// own error. All keys of a row share these errors, but the rows of a key do
// not. So errors are added over keys, and their squares are added over rows.
struct PairError {
  double weight = 0;    // the error of P
  double grad_dot = 0;  // the error of dS, times 1 - tanh^2 with a soft cap
};

// The numbers of one row and key that PairErrorOf needs.
struct PairGradient {
  double grad_weight = 0;            // dP
  double grad_weight_magnitude = 0;  // sum |g v|
  double mean = 0;                   // D
  double mean_magnitude = 0;         // sum |g o|
  double mean_error = 0;             // the error of D that comes from o
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
