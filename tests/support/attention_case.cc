#include "tests/support/attention_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/reference_attention.h"

namespace attnd::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

AttentionProblem MakeProblem(const CaseShape& s) {
  const int64_t q_heads = s.num_kv_heads * s.group;
  const auto spec = [](int64_t b, int64_t h, int64_t n, int64_t d) {
    return TensorSpec{.dtype = DataType::kF32, .shape = {b, h, n, d}};
  };
  return AttentionProblem::Create(
             spec(s.batch, q_heads, s.q_len, s.head_dim),
             spec(s.batch, s.num_kv_heads, s.kv_len, s.head_dim),
             spec(s.batch, s.num_kv_heads, s.kv_len, s.v_head_dim), s.options)
      .value();
}

// How far f32 may be from the oracle in one row. With u = 2^-24, a score of
// magnitude sum |q_d k_d| * |scale| = A carries a rounding error of about
// sqrt(head_dim) * u * A from its dot product and 2 * u * A from its scaling;
// that is the relative error of its weight. Sums of n terms add sqrt(n) * u.
// Both are typical growth, not worst case, hence the factor of 4.
double RowTolerance(const AttentionParams& p, double magnitude) {
  const double u = std::ldexp(1.0, -24);
  const auto root = [](int64_t n) { return std::sqrt(static_cast<double>(n)); };
  return 4 * u * (4 + root(p.kv_len) / 2 + (root(p.head_dim) + 2) * magnitude);
}

}  // namespace

std::string CaseShape::ToString() const {
  return absl::StrCat(
      "batch ", batch, " kv_heads ", num_kv_heads, " group ", group, " q_len ",
      q_len, " kv_len ", kv_len, " head_dim ", head_dim, " v_head_dim ",
      v_head_dim, " causal ", static_cast<int>(options.causal), " block_size ",
      options.block_size, " scale ", options.scale.value_or(NAN));
}

AttentionCase::AttentionCase(const CaseShape& shape, uint64_t seed,
                             float query_deviation)
    : shape_(shape), problem_(MakeProblem(shape)) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& to, int64_t bytes, float factor) {
    to.resize(static_cast<size_t>(bytes) / sizeof(float));
    for (float& x : to) x = normal(rng) * factor;
  };
  fill(query, problem_.query_bytes(), query_deviation);
  fill(key, problem_.key_bytes(), 1);
  fill(value, problem_.value_bytes(), 1);
  ClearOutputs();
}

AttentionBuffers AttentionCase::buffers() {
  return {.query = query.data(),
          .key = key.data(),
          .value = value.data(),
          .output = output.data(),
          .lse = lse.data()};
}

void AttentionCase::ClearOutputs() {
  output.assign(static_cast<size_t>(problem_.output_bytes()) / sizeof(float),
                kNan);
  lse.assign(static_cast<size_t>(problem_.lse_bytes()) / sizeof(float), kNan);
}

std::string AttentionCase::Compare() const {
  const AttentionParams& p = problem_.params();
  const auto q_view = problem_.QueryView(query.data());
  const auto k_view = problem_.KeyView(key.data());
  std::vector<double> expected(static_cast<size_t>(p.v_head_dim));
  const AttentionBuffers inputs = {.query = query.data(), .key = key.data(), .value = value.data()};
  double worst = 1;
  std::string report;
  size_t row = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      for (int64_t i = 0; i < p.q_len; ++i, ++row) {
        double expected_lse = 0;
        ReferenceAttentionRow(problem_, inputs, b, h, i, expected.data(),
                              &expected_lse);
        const KeyRange seen = problem_.mask().Entry(b).VisibleRange(i);
        const float* q = q_view.Row(b, h, i);
        double magnitude = 0;
        for (int64_t j = seen.begin; j < seen.end; ++j) {
          const float* k = k_view.Row(b, h / p.HeadsPerGroup(), j);
          double sum = 0;
          for (int64_t d = 0; d < p.head_dim; ++d) sum += std::abs(q[d] * k[d]);
          magnitude = std::max(magnitude, sum * std::abs(p.score_scale));
        }
        const double tolerance = RowTolerance(p, magnitude);
        const auto check = [&](const char* what, int64_t column, double got,
                               double want, double scale) {
          if (std::isnan(want) ? std::isnan(got) : got == want) return;
          const double error = std::abs(got - want) / (tolerance * scale);
          if (error <= worst) return;  // false for NaN: it is reported
          worst = std::isnan(error) ? std::numeric_limits<double>::infinity()
                                    : error;
          report =
              absl::StrCat(shape_.ToString(), ": ", what, "[", b, ", ", h, ", ",
                           i, ", ", column, "] is ", got, ", expected ", want,
                           ", off by ", error, " times the bound");
        };
        for (int64_t c = 0; c < p.v_head_dim; ++c) {
          const auto column = static_cast<size_t>(c);
          // Normal deviates stay below 6 here.
          check(
              "output", c,
              double{output[row * static_cast<size_t>(p.v_head_dim) + column]},
              expected[column], 6);
        }
        if (p.return_lse) {
          check("lse", 0, double{lse[row]}, expected_lse,
                1 + std::abs(expected_lse));
        }
      }
    }
  }
  return report;
}

CaseShape RandomShape(std::mt19937_64& rng, int64_t max_len) {
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  const auto length = [&](int64_t max) {
    if (below(2) == 0) return std::min(max, 1 + below(9));
    int64_t power = 16;
    while (power * 2 <= max && below(3) != 0) power *= 2;
    return std::clamp<int64_t>(power - 1 + below(3), 1, max);
  };
  CaseShape shape;
  shape.batch = 1 + below(2);
  shape.num_kv_heads = 1 + below(3);
  shape.group = 1 + below(4);
  shape.q_len = length(max_len);
  shape.kv_len = length(max_len);
  shape.head_dim = length(160);
  shape.v_head_dim = below(2) == 0 ? shape.head_dim : length(160);
  shape.options.causal = static_cast<Causal>(below(3));
  shape.options.return_lse = true;
  if (below(4) == 0) shape.options.block_size = 1 + below(300);
  if (below(4) == 0) {
    shape.options.scale = static_cast<float>(below(5) - 2) / 4.0f;
  }
  if (below(4) == 0) shape.options.temperature = 0.5f;
  return shape;
}

}  // namespace attnd::testing
