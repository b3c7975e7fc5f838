#include "core/reference_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

namespace attnd {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double FromF16(uint16_t bits) {
  const double sign = (bits & 0x8000U) != 0 ? -1 : 1;
  const int exponent = (bits >> 10U) & 31U;
  const int fraction = bits & 1023U;
  if (exponent == 31) {
    return fraction == 0 ? sign * kInfinity
                         : std::numeric_limits<double>::quiet_NaN();
  }
  return exponent == 0 ? sign * std::ldexp(fraction, -24)
                       : sign * std::ldexp(1024 + fraction, exponent - 25);
}

// A tensor of any type, read element by element.
class Reader {
 public:
  Reader(TensorView<const std::byte> view, DataType type)
      : view_(view), type_(type) {}

  double At(int64_t batch, int64_t head, int64_t seq, int64_t dim) const {
    return ReferenceElement(
        view_.data, type_,
        view_.Offset(batch, head, seq) + dim * view_.strides[3]);
  }

 private:
  TensorView<const std::byte> view_;
  DataType type_;
};

const std::byte* Bytes(const void* data) {
  return static_cast<const std::byte*>(data);
}

// Whether row i sees key j by position and lengths, as the contract has it.
// Written out here and not asked of Mask, which this file is there to check.
bool Sees(const AttentionProblem& problem, const BatchEntry& where,
          int64_t position, int64_t i, int64_t j) {
  const AttentionOptions& options = problem.options();
  const auto listed = [&](const std::vector<int64_t>& list, int64_t otherwise) {
    return list.empty() ? otherwise : list[static_cast<size_t>(where.batch)];
  };
  return i < listed(options.query_lengths, where.q_len) &&
         j < listed(options.key_lengths, where.kv_len) &&
         (options.causal == Causal::kNone || j <= position) &&
         (!options.window_left || position - j <= *options.window_left) &&
         (!options.window_right || j - position <= *options.window_right);
}

// p(i) - i of batch entry `entry`.
int64_t ShiftOf(const AttentionProblem& problem, int64_t entry, int64_t q_len,
                int64_t kv_len) {
  const AttentionOptions& options = problem.options();
  const auto at = [entry](const std::vector<int64_t>& list) {
    return list[list.size() == 1 ? 0 : static_cast<size_t>(entry)];
  };
  if (!options.query_offsets.empty()) return at(options.query_offsets);
  if (options.causal != Causal::kBottomRight) return 0;
  const auto length = [entry](const std::vector<int64_t>& list,
                              int64_t otherwise) {
    return list.empty() ? otherwise : list[static_cast<size_t>(entry)];
  };
  return length(options.key_lengths, kv_len) -
         length(options.query_lengths, q_len);
}

}  // namespace

double ReferenceElement(const void* data, DataType type, int64_t index) {
  if (type == DataType::kF32) {
    return double{static_cast<const float*>(data)[index]};
  }
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  if (type == DataType::kF16) return FromF16(bits);
  return double{std::bit_cast<float>(uint32_t{bits} << 16U)};
}

void ReferenceAttentionRow(const AttentionProblem& problem,
                           const AttentionBuffers& inputs, int64_t entry,
                           int64_t head, int64_t q_row, double* output,
                           double* lse) {
  const AttentionParams& params = problem.params();
  const BatchEntry where = problem.mask().Entry(entry);
  const int64_t kv_head = head / params.HeadsPerGroup();
  const Reader query(problem.QueryView(Bytes(inputs.query)),
                     params.query_dtype);
  const Reader key(problem.KeyView(Bytes(inputs.key)), params.key_dtype);
  const Reader value(problem.ValueView(Bytes(inputs.value)),
                     params.value_dtype);
  // Keys of the entry in memory, hidden ones included.
  const int64_t kv_len = params.ragged ? where.kv_len : params.kv_len;
  const int64_t position = q_row + ShiftOf(problem, entry, where.q_len, kv_len);

  // The largest score is taken off all of them, so that no exp overflows. A NaN
  // is never the largest, but makes the sum below NaN.
  std::vector<double> scores(static_cast<size_t>(kv_len));
  std::vector<bool> seen(static_cast<size_t>(kv_len));
  double largest = -kInfinity;
  bool has_weight = false;
  bool has_nan = false;
  for (int64_t j = 0; j < kv_len; ++j) {
    if (!Sees(problem, where, position, q_row, j)) continue;
    if (params.has_mask) {
      const TensorView<const std::byte> mask =
          problem.MaskView(Bytes(inputs.mask));
      if (mask.Row(where.batch, head, q_row)[j * mask.strides[3]] ==
          std::byte{0}) {
        continue;
      }
    }
    double score = 0;
    for (int64_t d = 0; d < params.head_dim; ++d) {
      score += query.At(where.batch, head, where.q_begin + q_row, d) *
               key.At(where.batch, kv_head, where.kv_begin + j, d);
    }
    score *= double{params.score_scale};
    if (params.soft_cap != 0) {
      const double cap{params.soft_cap};
      score = cap * std::tanh(score / cap);
    }
    if (params.has_alibi) {
      const double slope{problem.alibi_slopes()[static_cast<size_t>(head)]};
      score -= slope * std::abs(static_cast<double>(position - j));
    }
    if (params.has_bias) {
      const double bias =
          Reader(problem.BiasView(Bytes(inputs.bias)), params.bias_dtype)
              .At(where.batch, head, q_row, j);
      if (bias == -kInfinity) continue;
      score += bias;
    }
    seen[static_cast<size_t>(j)] = true;
    scores[static_cast<size_t>(j)] = score;
    if (score > largest) largest = score;
    has_weight |= score != -kInfinity;
    has_nan |= std::isnan(score);
  }

  std::fill_n(output, params.v_head_dim, 0.0);
  const double sink =
      params.has_sinks
          ? double{problem.sink_logits()[static_cast<size_t>(head)]}
          : -kInfinity;
  *lse = sink;
  if (!has_weight) return;

  largest = std::max(largest, sink);
  double sum = std::exp(sink - largest);
  for (int64_t j = 0; j < kv_len; ++j) {
    if (!seen[static_cast<size_t>(j)]) continue;
    const double weight = std::exp(scores[static_cast<size_t>(j)] - largest);
    sum += weight;
    for (int64_t d = 0; d < params.v_head_dim; ++d) {
      output[d] +=
          weight * value.At(where.batch, kv_head, where.kv_begin + j, d);
    }
  }
  for (int64_t d = 0; d < params.v_head_dim; ++d) output[d] /= sum;
  // A score of +inf: ln(inf) by the formula, though inf - inf above is NaN.
  *lse = largest == kInfinity && !has_nan ? kInfinity : largest + std::log(sum);
}

void ReferenceAttention(const AttentionProblem& problem,
                        const AttentionBuffers& inputs, double* output,
                        double* lse) {
  const AttentionParams& params = problem.params();
  const TensorView<double> out = problem.OutputView(output);
  for (int64_t b = 0; b < params.batch; ++b) {
    const BatchEntry where = problem.mask().Entry(b);
    for (int64_t h = 0; h < params.num_q_heads; ++h) {
      for (int64_t i = 0; i < where.q_len; ++i) {
        const int64_t row = where.q_begin + i;
        ReferenceAttentionRow(
            problem, inputs, b, h, i, out.Row(where.batch, h, row),
            lse + (where.batch * params.num_q_heads + h) * params.q_len + row);
      }
    }
  }
}

}  // namespace attnd
