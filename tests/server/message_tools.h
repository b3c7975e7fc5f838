// Makes requests, splits messages into slices, and reads the details of errors.
#ifndef ATTND_TESTS_SERVER_MESSAGE_TOOLS_H_
#define ATTND_TESTS_SERVER_MESSAGE_TOOLS_H_

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "google/protobuf/message.h"
#include "wire/message_splitter.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

// Return an F32 tensor of `shape` with random elements, as `data` or as
// `values`.
v1::Tensor DataTensor(const std::vector<int64_t>& shape, uint64_t seed);
v1::Tensor ValuesTensor(const std::vector<int64_t>& shape, uint64_t seed);
// Returns such a tensor of F16 or BF16, as `data`.
v1::Tensor HalfTensor(v1::DataType type, const std::vector<int64_t>& shape,
                      uint64_t seed);
// Returns a mask that hides about one key in four.
v1::Tensor MaskTensor(const std::vector<int64_t>& shape, uint64_t seed);

// Returns a small and valid request.
v1::AttentionRequest GoodAttention();
// Has the same query, key and value. Its output and lse are random.
v1::AttentionBackwardRequest GoodBackward();

// Cuts `bytes` into slices of 1 to `max_slice` bytes. Each slice has its own
// memory, so that a sanitizer reports a read past its end.
ReceivedMessage InSlices(const std::string& bytes, size_t max_slice,
                         uint64_t seed);

// Replaces the tokens in a parsed message with the payloads that they stand
// for.
void RestorePayloads(google::protobuf::Message& message,
                     const SplitMessage& split,
                     const ReceivedMessage& received);

// All bytes of a message.
std::string Join(const OutgoingMessage& message);

// Has what a client learns from an error.
struct Refusal {
  int code = 0;
  std::string message;
  std::string reason;
  std::string field;      // "<none>" if no field is named
  int64_t retry_ms = -1;  // -1 if there is no RetryInfo
};

Refusal ParseRefusal(const std::string& details);
Refusal RefusalOf(const absl::Status& status);

// Fills fields, including nested ones, with random values. `rng` also chooses
// the fields.
void FillAtRandom(google::protobuf::Message& message, std::mt19937_64& rng);

// Returns `bytes` with one to three random edits. An edit flips, removes,
// inserts or repeats bytes.
std::string Mutate(std::string bytes, std::mt19937_64& rng);

std::string RandomBytes(size_t count, std::mt19937_64& rng);

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_MESSAGE_TOOLS_H_
