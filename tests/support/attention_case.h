// A random attention call with its oracle: what kernel, engine and server
// tests hold their answers against.
#ifndef ATTND_TESTS_SUPPORT_ATTENTION_CASE_H_
#define ATTND_TESTS_SUPPORT_ATTENTION_CASE_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/attention_engine.h"
#include "core/attention_problem.h"
#include "tests/support/typed_array.h"

namespace attnd::testing {

// What to draw. Lengths count tokens; of a ragged batch all its entries', whose
// `batch` stays 1.
struct CaseShape {
  int64_t batch = 1;         // 1 where the rank is below 4
  int64_t num_kv_heads = 1;  // 1 where the rank is 2
  int64_t group = 1;         // query heads to a kv head; likewise
  int64_t q_len = 1;
  int64_t kv_len = 1;
  int64_t head_dim = 1;
  int64_t v_head_dim = 1;
  int rank = 4;
  DataType query_dtype = DataType::kF32;
  DataType key_dtype = DataType::kF32;
  DataType value_dtype = DataType::kF32;
  AttentionOptions options = {};
  OutputOptions outputs = {};

  // As a C++ initialiser that makes it again.
  std::string ToString() const;
};

// The three tensors of a case, by type and shape.
struct CaseSpecs {
  TensorSpec query, key, value;
};
CaseSpecs SpecsOf(const CaseShape& shape);

// Inputs of normal deviates; of a bias one in eight is -inf, and of a mask one
// in four is false. Outputs are filled with NaN so that a row that is never
// written shows. The same seed gives the same case.
class AttentionCase {
 public:
  explicit AttentionCase(const CaseShape& shape, uint64_t seed,
                         float query_deviation = 1);

  const CaseShape& shape() const { return shape_; }
  const AttentionProblem& problem() const { return problem_; }
  AttentionBuffers buffers();
  void ClearOutputs();

  // Makes keys and values so much larger.
  void Scale(float factor);

  // The oracle's answer, and how far from it another may be.
  struct Expected {
    std::vector<double> output, lse;
    std::vector<double> output_bound, lse_bound;
  };
  Expected Expect() const;

  // Compares what was computed with `expected`. Empty, or a description of the
  // worst element and of the case.
  std::string Compare(const Expected& expected) const;
  std::string Compare() const { return Compare(Expect()); }

  // "CaseShape{...}, seed": what the constructor takes to make it again.
  std::string ToString() const;

  TypedArray query, key, value, output, bias;
  std::vector<std::byte> mask;
  std::vector<float> lse;

 private:
  CaseShape shape_;
  uint64_t seed_;
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
// and its neighbours, up to `max_len`. F32, rank 4; of the options scale,
// temperature, block_size, causal and lse.
CaseShape RandomShape(std::mt19937_64& rng, int64_t max_len);

// The same with any types, layout, rank and options that go together, ragged
// batches and empty axes among them.
CaseShape RandomCase(std::mt19937_64& rng, int64_t max_q_len,
                     int64_t max_kv_len);
inline CaseShape RandomCase(std::mt19937_64& rng, int64_t max_len) {
  return RandomCase(rng, max_len, max_len);
}

// More keys than a split has, for one tile of rows on some instruction sets and
// for two on others, alone and beside others in a batch that is padded.
std::vector<CaseShape> SplitShapes();

// Sizes of keys and values to try them with.
inline constexpr float kSplitSizes[] = {1, 1e-20F};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_ATTENTION_CASE_H_
