// A random attention call, with the oracle that tests of kernels, of the engine
// and of the server compare their answers with.
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

// Describes the shape of a case. In a ragged batch, the lengths are the totals
// of all entries, and `batch` is 1.
struct CaseShape {
  int64_t batch = 1;         // 1 if the rank is below 4
  int64_t num_kv_heads = 1;  // 1 if the rank is 2
  int64_t group = 1;         // query heads per kv head; 1 if the rank is 2
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

  // Returns a C++ initialiser that makes the same shape.
  std::string ToString() const;
};

// The types and shapes of the three tensors of a case.
struct CaseSpecs {
  TensorSpec query, key, value;
};
CaseSpecs SpecsOf(const CaseShape& shape);

// Inputs are normally distributed. In a bias, one element in eight is -inf, and
// in a mask, one in four is false. Outputs are filled with NaN, so that tests
// notice a row that is never written. The same seed gives the same case.
class AttentionCase {
 public:
  explicit AttentionCase(const CaseShape& shape, uint64_t seed,
                         float query_deviation = 1);

  const CaseShape& shape() const { return shape_; }
  const AttentionProblem& problem() const { return problem_; }
  AttentionBuffers buffers();
  void ClearOutputs();

  // Multiplies keys and values by `factor`.
  void Scale(float factor);

  // The answer of the oracle, and how far another answer may differ from it.
  struct Expected {
    std::vector<double> output, lse;
    std::vector<double> output_bound, lse_bound;
  };
  Expected Expect() const;

  // Compares the outputs with `expected`. Returns an empty text, or a
  // description of the case and of the element with the largest error.
  std::string Compare(const Expected& expected) const;
  std::string Compare() const { return Compare(Expect()); }

  // Returns the arguments of the constructor that make this case,
  // "CaseShape{...}, seed".
  std::string ToString() const;

  TypedArray query, key, value, output, bias;
  std::vector<std::byte> mask;
  std::vector<float> lse;

 private:
  CaseShape shape_;
  uint64_t seed_;
  AttentionProblem problem_;
};

// Returns how many of `n` cases a run has time for. Sanitizers make each case
// 20 times slower, and look for other bugs than wrong numbers. An emulated
// processor is as slow.
constexpr int Affordable(int n) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    defined(ATTND_EMULATED)
  return n < 10 ? 1 : n / 10;
#else
  return n;
#endif
}

// Returns an F32 shape of rank 4, whose lengths lie at the edges of tiles: 1 to
// 9, or a power of two and its neighbours, up to `max_len`. It can set the
// options scale, temperature, block_size, causal and return_lse.
CaseShape RandomShape(std::mt19937_64& rng, int64_t max_len);

// Returns a shape with any valid combination of types, layout, rank and
// options. It can be a ragged batch and can have empty axes.
CaseShape RandomCase(std::mt19937_64& rng, int64_t max_q_len,
                     int64_t max_kv_len);
inline CaseShape RandomCase(std::mt19937_64& rng, int64_t max_len) {
  return RandomCase(rng, max_len, max_len);
}

// Returns shapes with more keys than a split has. Their rows form one tile on
// some instruction sets and two on others. They stand alone, and with others in
// a padded batch.
std::vector<CaseShape> SplitShapes();

// Tests multiply keys and values of these shapes by each of these factors.
inline constexpr float kSplitSizes[] = {1, 1e-20F};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_ATTENTION_CASE_H_
