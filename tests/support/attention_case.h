// A random attention call with its oracle: what kernel, engine and server
// tests hold their answers against.
#ifndef ATTND_TESTS_SUPPORT_ATTENTION_CASE_H_
#define ATTND_TESTS_SUPPORT_ATTENTION_CASE_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/attention_engine.h"
#include "core/attention_problem.h"

namespace attnd::testing {

// What to draw. Lengths count tokens.
struct CaseShape {
  int64_t batch = 1;
  int64_t num_kv_heads = 1;
  int64_t group = 1;  // query heads to a kv head
  int64_t q_len = 1;
  int64_t kv_len = 1;
  int64_t head_dim = 1;
  int64_t v_head_dim = 1;
  AttentionOptions options = {};

  std::string ToString() const;
};

// Inputs of normal deviates, outputs filled with NaN so that a row that is
// never written shows. The same seed gives the same case.
class AttentionCase {
 public:
  explicit AttentionCase(const CaseShape& shape, uint64_t seed,
                         float query_deviation = 1);

  const AttentionProblem& problem() const { return problem_; }
  AttentionBuffers buffers();
  void ClearOutputs();

  // Compares what was computed with the double oracle, row by row, within
  // the bound at RowTolerance. Empty, or a description of the worst row.
  std::string Compare() const;

  std::vector<float> query, key, value, output, lse;

 private:
  CaseShape shape_;
  AttentionProblem problem_;
};

// How many cases of `n` a run can afford: sanitizers make each 20 times slower,
// and look for other bugs than wrong numbers.
constexpr int Affordable(int n) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return n < 10 ? 1 : n / 10;
#else
  return n;
#endif
}

// A shape with every length at an edge of some tile: 1..9 or a power of two
// and its neighbours, up to `max_len`.
CaseShape RandomShape(std::mt19937_64& rng, int64_t max_len);

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_ATTENTION_CASE_H_
