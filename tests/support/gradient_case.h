// A random call of the backward pass, with its oracle.
#ifndef ATTND_TESTS_SUPPORT_GRADIENT_CASE_H_
#define ATTND_TESTS_SUPPORT_GRADIENT_CASE_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/attention_problem.h"
#include "tests/support/attention_case.h"

namespace attnd::testing {

// Gradients are filled with NaN, so that tests notice one that is never
// written.
class GradientCase {
 public:
  // `shape` must have F32 inputs and outputs and must return lse.
  GradientCase(const CaseShape& shape, uint64_t seed);

  // The gradients depend on its output and lse, so tests must compute these
  // first.
  AttentionCase forward;
  std::vector<float> grad_output, grad_query, grad_key, grad_value;

  BackwardBuffers buffers();
  void ClearGradients();

  // The gradient of the oracle, and how far another one may differ from it.
  struct Gradient {
    std::vector<double> exact, bound;
  };
  struct Expected {
    Gradient query, key, value;
  };
  Expected Expect() const;

  // Returns an empty text, or a description of the case and of the element with
  // the largest error.
  std::string Compare(const Expected& expected) const;
  std::string Compare() const { return Compare(Expect()); }
};

// Returns a RandomCase with the types that the backward pass supports.
CaseShape RandomGradientCase(std::mt19937_64& rng, int64_t max_len);

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_GRADIENT_CASE_H_
