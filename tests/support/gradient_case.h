// A random call of the backward pass with its oracle.
#ifndef ATTND_TESTS_SUPPORT_GRADIENT_CASE_H_
#define ATTND_TESTS_SUPPORT_GRADIENT_CASE_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/attention_problem.h"
#include "tests/support/attention_case.h"

namespace attnd::testing {

// Gradients are filled with NaN, so that one that is never written shows.
class GradientCase {
 public:
  // `shape` is F32 in and out, and returns lse.
  GradientCase(const CaseShape& shape, uint64_t seed);

  // Its output and lse are what the gradients start from: compute them first.
  AttentionCase forward;
  std::vector<float> grad_output, grad_query, grad_key, grad_value;

  BackwardBuffers buffers();
  void ClearGradients();

  // The oracle's gradients, and how far from them others may be.
  struct Gradient {
    std::vector<double> exact, bound;
  };
  struct Expected {
    Gradient query, key, value;
  };
  Expected Expect() const;

  // Empty, or a description of the worst element and of the case.
  std::string Compare(const Expected& expected) const;
  std::string Compare() const { return Compare(Expect()); }
};

// RandomCase with the types of the backward pass.
CaseShape RandomGradientCase(std::mt19937_64& rng, int64_t max_len);

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_GRADIENT_CASE_H_
