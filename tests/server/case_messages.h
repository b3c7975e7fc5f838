// Turns random cases with an oracle (tests/support) into requests, and puts the
// contents of answers back into the cases.
#ifndef ATTND_TESTS_SERVER_CASE_MESSAGES_H_
#define ATTND_TESTS_SERVER_CASE_MESSAGES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attnd/v1/attention.pb.h"
#include "tests/support/attention_case.h"
#include "tests/support/gradient_case.h"

namespace attnd::server {

// The options of `shape`. Bias and mask have a type and a shape, but no
// payload.
v1::AttentionOptions OptionsOf(const testing::CaseShape& shape);

// The requests of a case. The sequence of SelfAttention is the case's query,
// and the second sequence of CrossAttention is its key.
v1::AttentionRequest RequestOf(const testing::AttentionCase& test);
v1::SelfAttentionRequest SelfRequestOf(const testing::AttentionCase& test);
v1::CrossAttentionRequest CrossRequestOf(const testing::AttentionCase& test);
// `test` must have the computed output and lse.
v1::AttentionBackwardRequest BackwardRequestOf(
    const testing::GradientCase& test);
// Asks for the memory of the same problem, without its tensors, which must all
// have one type.
v1::MemoryEstimateRequest EstimateRequestOf(const testing::CaseShape& shape);

// Changes an F32 tensor, so that its elements are sent as `values` instead of
// `data`.
void UseValues(v1::Tensor& tensor);

// The messages of a stream: a header without payloads, then each tensor in
// chunks of at most `chunk_bytes`.
std::vector<std::string> StreamOf(v1::AttentionRequest request,
                                  size_t chunk_bytes);
// Joins the messages of a stream's answer to one, or returns what is wrong with
// them.
absl::StatusOr<v1::AttentionResponse> JoinStream(
    const std::vector<std::string>& messages);

// Copies the elements of `tensor` to `to`, which has `size_bytes`. Returns what
// is wrong with its shape, type or size, or an empty text.
std::string TakeElements(const v1::Tensor& tensor, DataType type,
                         const std::vector<int64_t>& shape, void* to,
                         size_t size_bytes);
// Puts an answer's output and lse into `test`. Returns what is wrong with them,
// or an empty text.
std::string TakeAnswer(const v1::Tensor& output, const v1::Tensor* lse,
                       testing::AttentionCase& test);

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_CASE_MESSAGES_H_
