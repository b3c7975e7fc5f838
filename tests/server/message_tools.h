// Requests to start from, messages out of bytes, and what a refusal says.
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

// An F32 tensor of `shape` with random elements.
v1::Tensor DataTensor(const std::vector<int64_t>& shape, uint64_t seed);
v1::Tensor ValuesTensor(const std::vector<int64_t>& shape, uint64_t seed);
// The same of F16 or BF16, as `data`.
v1::Tensor HalfTensor(v1::DataType type, const std::vector<int64_t>& shape,
                      uint64_t seed);
// A mask that hides a key in four.
v1::Tensor MaskTensor(const std::vector<int64_t>& shape, uint64_t seed);

// A small request that is good, and so are its parts.
v1::AttentionRequest GoodAttention();
// Of the same query, key and value; its output and lse are random.
v1::AttentionBackwardRequest GoodBackward();

// `bytes` in slices of 1 to `max_slice` bytes, each with memory of its own, so
// that a sanitizer sees who reads past one.
ReceivedMessage InSlices(const std::string& bytes, size_t max_slice,
                         uint64_t seed);

// Puts the payloads of a parsed message back where their tokens stand.
void RestorePayloads(google::protobuf::Message& message,
                     const SplitMessage& split,
                     const ReceivedMessage& received);

// All bytes of a message.
std::string Join(const OutgoingMessage& message);

// What a client learns of an error.
struct Refusal {
  int code = 0;
  std::string message;
  std::string reason;
  std::string field;      // "<none>" where no field is named
  int64_t retry_ms = -1;  // -1 where there is no RetryInfo
};

Refusal ParseRefusal(const std::string& details);
Refusal RefusalOf(const absl::Status& status);

// Fills fields at random, nested ones too; `rng` decides which.
void FillAtRandom(google::protobuf::Message& message, std::mt19937_64& rng);

// `bytes` with one to three random edits: flips, cuts, insertions, repeats.
std::string Mutate(std::string bytes, std::mt19937_64& rng);

std::string RandomBytes(size_t count, std::mt19937_64& rng);

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_MESSAGE_TOOLS_H_
