#include "core/reference_attention.h"

#include <cmath>
#include <limits>
#include <vector>

namespace attnd {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Whether query row i sees key j, by p(i) as the contract defines it. Written
// out here and not asked of Mask, which this file is there to check.
bool Sees(const AttentionParams& params, int64_t i, int64_t j) {
  switch (params.causal) {
    case Causal::kNone:
      return true;
    case Causal::kTopLeft:
      return j <= i;
    case Causal::kBottomRight:
      return j <= i + params.kv_len - params.q_len;
  }
  return true;
}

double Dot(const float* a, const float* b, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

}  // namespace

void ReferenceAttentionRow(const AttentionProblem& problem, const float* query,
                           const float* key, const float* value, int64_t batch,
                           int64_t head, int64_t q_row, double* output,
                           double* lse) {
  const AttentionParams& params = problem.params();
  const int64_t kv_head = head / params.HeadsPerGroup();
  const float* q_vector = problem.QueryView(query).Row(batch, head, q_row);
  const TensorView<const float> keys = problem.KeyView(key);
  const TensorView<const float> values = problem.ValueView(value);

  // The largest score is taken off all of them, so that no exp overflows. A NaN
  // is never the largest, but makes the sum below NaN.
  std::vector<double> scores(static_cast<size_t>(params.kv_len));
  double largest = -kInfinity;
  bool has_weight = false;
  bool has_nan = false;
  for (int64_t j = 0; j < params.kv_len; ++j) {
    if (!Sees(params, q_row, j)) continue;
    const double score =
        double{params.score_scale} *
        Dot(q_vector, keys.Row(batch, kv_head, j), params.head_dim);
    scores[static_cast<size_t>(j)] = score;
    if (score > largest) largest = score;
    has_weight |= score != -kInfinity;
    has_nan |= std::isnan(score);
  }

  for (int64_t d = 0; d < params.v_head_dim; ++d) output[d] = 0;
  *lse = -kInfinity;
  if (!has_weight) return;

  double sum = 0;
  for (int64_t j = 0; j < params.kv_len; ++j) {
    if (!Sees(params, q_row, j)) continue;
    const double weight = std::exp(scores[static_cast<size_t>(j)] - largest);
    const float* v_vector = values.Row(batch, kv_head, j);
    sum += weight;
    for (int64_t d = 0; d < params.v_head_dim; ++d) {
      output[d] += weight * double{v_vector[d]};
    }
  }
  for (int64_t d = 0; d < params.v_head_dim; ++d) output[d] /= sum;
  // A score of +inf: ln(inf) by the formula, though inf - inf above is NaN.
  *lse = largest == kInfinity && !has_nan ? kInfinity : largest + std::log(sum);
}

void ReferenceAttention(const AttentionProblem& problem, const float* query,
                        const float* key, const float* value, double* output,
                        double* lse) {
  const AttentionParams& params = problem.params();
  int64_t row = 0;
  for (int64_t b = 0; b < params.batch; ++b) {
    for (int64_t h = 0; h < params.num_q_heads; ++h) {
      for (int64_t i = 0; i < params.q_len; ++i, ++row) {
        ReferenceAttentionRow(problem, query, key, value, b, h, i,
                              output + row * params.v_head_dim, lse + row);
      }
    }
  }
}

}  // namespace attnd
