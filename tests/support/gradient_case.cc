#include "tests/support/gradient_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/reference_attention.h"
#include "tests/support/numbers.h"
#include "tests/support/tolerance.h"

namespace attnd::testing {
namespace {

// Computes the bounds of each element of one gradient. The errors of a row
// affect the gradient of its query together, so they are added. The errors of
// the rows that affect a key are independent, so their squares are added.
struct Sums {
  explicit Sums(size_t size) : errors(size), magnitudes(size), terms(size) {}

  void AddIndependent(int64_t at, double error, double magnitude) {
    const auto i = static_cast<size_t>(at);
    errors[i] += error * error;
    Add(i, magnitude);
  }
  void AddTogether(int64_t at, double error, double magnitude) {
    const auto i = static_cast<size_t>(at);
    errors[i] += error;
    Add(i, magnitude);
  }

  // Adds the rounding errors of the sum itself.
  std::vector<double> Bounds(bool independent) const {
    std::vector<double> bounds(errors.size());
    for (size_t i = 0; i < bounds.size(); ++i) {
      bounds[i] = (independent ? std::sqrt(errors[i]) : errors[i]) +
                  kSafety * kF32Unit * (2 + Root(terms[i]) / 2) * magnitudes[i];
    }
    return bounds;
  }

  std::vector<double> errors, magnitudes;
  std::vector<int64_t> terms;

 private:
  void Add(size_t i, double magnitude) {
    magnitudes[i] += magnitude;
    ++terms[i];
  }
};

}  // namespace

GradientCase::GradientCase(const CaseShape& shape, uint64_t seed)
    : forward(shape, seed) {
  std::mt19937_64 rng(seed + 1);
  std::normal_distribution<float> normal;
  grad_output.resize(static_cast<size_t>(forward.output.size()));
  for (float& x : grad_output) x = normal(rng);
  ClearGradients();
}

void GradientCase::ClearGradients() {
  grad_query.assign(static_cast<size_t>(forward.query.size()), kNan);
  grad_key.assign(static_cast<size_t>(forward.key.size()), kNan);
  grad_value.assign(static_cast<size_t>(forward.value.size()), kNan);
}

BackwardBuffers GradientCase::buffers() {
  return {.query = forward.query.floats().data(),
          .key = forward.key.floats().data(),
          .value = forward.value.floats().data(),
          .bias = forward.bias.data(),
          .mask = forward.mask.data(),
          .output = forward.output.floats().data(),
          .lse = forward.lse.data(),
          .grad_output = grad_output.data(),
          .grad_query = grad_query.data(),
          .grad_key = grad_key.data(),
          .grad_value = grad_value.data()};
}

GradientCase::Expected GradientCase::Expect() const {
  const AttentionProblem& problem = forward.problem();
  const AttentionParams& p = problem.params();
  const BackwardBuffers inputs = {.query = forward.query.floats().data(),
                                  .key = forward.key.floats().data(),
                                  .value = forward.value.floats().data(),
                                  .bias = forward.bias.data(),
                                  .mask = forward.mask.data(),
                                  .grad_output = grad_output.data()};
  Expected expected;
  expected.query.exact.resize(grad_query.size());
  expected.key.exact.resize(grad_key.size());
  expected.value.exact.resize(grad_value.size());
  ReferenceBackward(problem, inputs, expected.query.exact.data(),
                    expected.key.exact.data(), expected.value.exact.data());

  const AttentionBuffers forward_inputs = {.query = inputs.query,
                                           .key = inputs.key,
                                           .value = inputs.value,
                                           .bias = inputs.bias,
                                           .mask = inputs.mask};
  Sums query(grad_query.size());
  Sums key(grad_key.size());
  Sums value(grad_value.size());
  const auto query_view = problem.QueryView(inputs.query);
  const auto key_view = problem.KeyView(inputs.key);
  const auto value_view = problem.ValueView(inputs.value);
  const auto out_view = problem.OutputView(inputs.grad_output);
  std::vector<double> output(static_cast<size_t>(p.v_head_dim));
  for (int64_t b = 0; b < p.batch; ++b) {
    const BatchEntry entry = problem.visibility().Entry(b);
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      const double sink = p.has_sinks
                              ? problem.sink_logits()[static_cast<size_t>(h)]
                              : -std::numeric_limits<double>::infinity();
      for (int64_t i = 0; i < entry.q_len; ++i) {
        const ReferenceRow row =
            ReferenceWeights(problem, forward_inputs, b, h, i);
        ReferenceOutput(problem, forward_inputs, b, h, row, output.data());
        const RowBound bound = BoundOf(p, row, sink);
        const int64_t seq = entry.q_begin + i;
        const float* g = out_view.Row(entry.batch, h, seq);
        const float* q = query_view.Row(entry.batch, h, seq);
        const auto at_key = [&](const auto& view, const ReferenceKey& seen) {
          return view.Offset(entry.batch, h / p.HeadsPerGroup(),
                             entry.kv_begin + seen.index);
        };
        PairGradient pair;
        double largest = 0;
        double squares = 0;
        for (int64_t d = 0; d < p.v_head_dim; ++d) {
          const double product = double{g[d]} * output[static_cast<size_t>(d)];
          pair.mean += product;
          pair.mean_magnitude += std::abs(product);
          squares += double{g[d]} * double{g[d]};
        }
        for (const ReferenceKey& seen : row.keys) {
          const float* v = inputs.value + at_key(value_view, seen);
          for (int64_t d = 0; d < p.v_head_dim; ++d) {
            largest = std::max(largest, std::abs(double{v[d]}));
          }
        }
        pair.mean_error = std::sqrt(squares) * bound.output * largest;
        for (const ReferenceKey& seen : row.keys) {
          const int64_t v_at = at_key(value_view, seen);
          const int64_t k_at = at_key(key_view, seen);
          pair.grad_weight = pair.grad_weight_magnitude = 0;
          for (int64_t d = 0; d < p.v_head_dim; ++d) {
            const double product =
                double{g[d]} * double{inputs.value[v_at + d]};
            pair.grad_weight += product;
            pair.grad_weight_magnitude += std::abs(product);
          }
          const PairError error = PairErrorOf(p, seen, bound, pair);
          for (int64_t d = 0; d < p.v_head_dim; ++d) {
            const double gradient = std::abs(double{g[d]});
            value.AddIndependent(v_at + d, error.weight * gradient,
                                 seen.weight * gradient);
          }
          const double scale = std::abs(double{p.score_scale});
          const double grad_dot =
              seen.weight * std::abs(pair.grad_weight - pair.mean);
          const int64_t q_at = query_view.Offset(entry.batch, h, seq);
          for (int64_t d = 0; d < p.head_dim; ++d) {
            const double k_abs = scale * std::abs(double{inputs.key[k_at + d]});
            const double q_abs = scale * std::abs(double{q[d]});
            query.AddTogether(q_at + d, error.grad_dot * k_abs,
                              grad_dot * k_abs);
            key.AddIndependent(k_at + d, error.grad_dot * q_abs,
                               grad_dot * q_abs);
          }
        }
      }
    }
  }
  expected.query.bound = query.Bounds(/*independent=*/false);
  expected.key.bound = key.Bounds(/*independent=*/true);
  expected.value.bound = value.Bounds(/*independent=*/true);
  return expected;
}

std::string GradientCase::Compare(const Expected& expected) const {
  double worst = 1;
  std::string report;
  const auto check = [&](const char* what, const std::vector<float>& got,
                         const Gradient& want) {
    for (size_t i = 0; i < got.size(); ++i) {
      if (std::isnan(want.exact[i]) ? std::isnan(got[i])
                                    : double{got[i]} == want.exact[i]) {
        continue;
      }
      const double error =
          std::abs(double{got[i]} - want.exact[i]) / want.bound[i];
      // The comparison is false for NaN, so NaN is reported.
      if (error <= worst) continue;
      worst =
          std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
      report = absl::StrCat(what, "[", i, "] is ", got[i], ", expected ",
                            want.exact[i], ", off by ", error,
                            " times the bound of ", want.bound[i],
                            "; GradientCase c(", forward.ToString(), ")");
    }
  };
  check("grad_query", grad_query, expected.query);
  check("grad_key", grad_key, expected.key);
  check("grad_value", grad_value, expected.value);
  return report;
}

CaseShape RandomGradientCase(std::mt19937_64& rng, int64_t max_len) {
  CaseShape shape = RandomCase(rng, max_len);
  shape.query_dtype = shape.key_dtype = shape.value_dtype = DataType::kF32;
  shape.outputs.output_dtype.reset();
  shape.options.precision = Precision::kAuto;
  shape.outputs.return_lse = true;
  return shape;
}

}  // namespace attnd::testing
