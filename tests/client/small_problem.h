// A problem that is small enough to be read. Tests of all kinds of calls use
// it.
#ifndef ATTND_TESTS_CLIENT_SMALL_PROBLEM_H_
#define ATTND_TESTS_CLIENT_SMALL_PROBLEM_H_

#include <cstring>
#include <vector>

#include "attnd/v1/attention.pb.h"
#include "client/types.h"

namespace attnd::client {

inline std::vector<float> Floats(const v1::Tensor& tensor) {
  std::vector<float> floats(tensor.data().size() / sizeof(float));
  std::memcpy(floats.data(), tensor.data().data(), tensor.data().size());
  return floats;
}

// A problem of two query rows, three keys, head_dim 2, v_head_dim 1.
struct SmallProblem {
  std::vector<float> q = {1, 2, 3, 4};
  std::vector<float> k = {5, 6, 7, 8, 9, 10};
  std::vector<float> v = {11, 12, 13};
  std::vector<float> output = std::vector<float>(2, -1);
  std::vector<float> lse = std::vector<float>(2, -1);

  AttentionInputs inputs() const {
    return {.query = {q, {2, 2}}, .key = {k, {3, 2}}, .value = {v, {3, 1}}};
  }
  AttentionOutputs outputs() { return {.output = output, .lse = lse}; }
};

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_SMALL_PROBLEM_H_
