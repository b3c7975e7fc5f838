#include "server/self_test.h"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/attention_problem.h"
#include "core/reference_attention.h"
#include "server/random_floats.h"

namespace attnd::server {
namespace {

struct Case {
  std::array<int64_t, 4> query;
  std::array<int64_t, 4> key;
  int64_t v_head_dim;
  Causal causal;
};

// Odd dims, grouped heads, both causal rules, tails of every tile, one row.
constexpr Case kCases[] = {
    {{1, 2, 70, 64}, {1, 2, 130, 64}, 64, Causal::kNone},
    {{2, 4, 33, 17}, {2, 2, 65, 17}, 5, Causal::kTopLeft},
    {{1, 6, 129, 128}, {1, 1, 97, 128}, 96, Causal::kBottomRight},
    {{1, 8, 1, 80}, {1, 2, 300, 80}, 80, Causal::kNone},
    {{1, 1, 9, 1}, {1, 1, 7, 1}, 1, Causal::kBottomRight},
};

// Inputs are in [-1, 1), so the answers are too. Sums of a few hundred terms
// in f32 stay a factor of ten below this; a wrong tile does not.
constexpr double kTolerance = 1e-5;

std::vector<float> RandomTensor(int64_t size_bytes, uint32_t seed) {
  std::vector<float> tensor(static_cast<size_t>(size_bytes) / sizeof(float));
  RandomFloats(seed).Fill(tensor);
  return tensor;
}

// The largest difference; infinity where one is a NaN or an infinity that the
// other is not.
double WorstError(const std::vector<float>& got,
                  const std::vector<double>& expected) {
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = got[i];
    if (value == expected[i]) continue;
    const double error = std::abs(value - expected[i]);
    if (!(error <= worst)) {
      worst =
          std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    }
  }
  return worst;
}

absl::Status RunCase(AttentionEngine& engine, const Case& test) {
  const std::vector<int64_t> query_shape(test.query.begin(), test.query.end());
  const std::vector<int64_t> key_shape(test.key.begin(), test.key.end());
  std::vector<int64_t> value_shape = key_shape;
  value_shape.back() = test.v_head_dim;
  const absl::StatusOr<AttentionProblem> problem = AttentionProblem::Create(
      {.shape = query_shape}, {.shape = key_shape}, {.shape = value_shape},
      {.causal = test.causal, .return_lse = true});
  if (!problem.ok()) return problem.status();
  const std::vector<float> query = RandomTensor(problem->query_bytes(), 1);
  const std::vector<float> key = RandomTensor(problem->key_bytes(), 2);
  const std::vector<float> value = RandomTensor(problem->value_bytes(), 3);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> output(
      static_cast<size_t>(problem->output_bytes()) / sizeof(float), kNan);
  std::vector<float> lse(
      static_cast<size_t>(problem->lse_bytes()) / sizeof(float), kNan);
  const absl::StatusOr<RunStats> stats = engine.Run(
      *problem,
      {query.data(), key.data(), value.data(), output.data(), lse.data()});
  if (!stats.ok()) return stats.status();

  std::vector<double> expected_output(output.size());
  std::vector<double> expected_lse(lse.size());
  ReferenceAttention(*problem, query.data(), key.data(), value.data(),
                     expected_output.data(), expected_lse.data());
  const double error = std::max(WorstError(output, expected_output),
                                WorstError(lse, expected_lse));
  if (error <= kTolerance) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "self-test: kernel ", std::string(stats->kernel), " on ",
      std::string(IsaName(stats->isa)), " differs from the oracle by ", error,
      " for query [", absl::StrJoin(test.query, ", "), "]"));
}

}  // namespace

absl::Status RunSelfTest(AttentionEngine& engine) {
  for (const Case& test : kCases) {
    if (absl::Status status = RunCase(engine, test); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace attnd::server
