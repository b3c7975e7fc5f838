#include "cost/call_cost.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/numbers.h"

namespace attnd {
namespace {

constexpr int64_t kEnvelopes = 2 * kMessageEnvelopeBytes;
// The server's records of a call that copies 1000000 bytes or less.
constexpr int64_t kRecords = 24576;
constexpr int64_t kRecordsOfMillion = kRecords + 1000000 / 2048;

const MemoryEstimate kEstimate{.input_bytes = 1000000,
                               .output_bytes = 300000,
                               .workspace_bytes = 50000,
                               .flash_bytes = 1350000};

CallCost Cost(const TensorTransfer& transfer,
              const MemoryEstimate& estimate = kEstimate,
              const AttentionOptions& options = {}) {
  return CostOfCall(estimate, options, transfer);
}

TEST(CallCostTest, AnInlineCallHoldsItsMessageBesideItsTensors) {
  const CallCost cost = Cost({.copied_bytes = 1000000});
  // Three blocks of 64 KiB, and one part in 128.
  EXPECT_EQ(cost.wire_bytes, 1000000 + 3 * 65536 + 7812 + kEnvelopes);
  EXPECT_EQ(cost.peak_bytes, 1350000 + cost.wire_bytes + kRecordsOfMillion);
  EXPECT_EQ(cost.computing_bytes, cost.peak_bytes);
  EXPECT_EQ(cost.answering_bytes, kMessageEnvelopeBytes);
  EXPECT_EQ(cost.response_bytes, 300000 + kMessageEnvelopeBytes);
  EXPECT_EQ(cost.required_message_bytes, 1000000 + kMessageEnvelopeBytes);
}

TEST(CallCostTest, TheResponseMayBeTheLargerMessage) {
  MemoryEstimate estimate = kEstimate;
  estimate.input_bytes = 1000;
  const CallCost cost = Cost({.copied_bytes = 1000}, estimate);
  EXPECT_EQ(cost.peak_bytes,
            351000 + 1000 + (1000 + 7) + kEnvelopes + kRecords);
  EXPECT_EQ(cost.required_message_bytes, 300000 + kMessageEnvelopeBytes);
}

TEST(CallCostTest, AStreamHoldsAFewChunksOfItsTensors) {
  const CallCost cost =
      Cost({.transport = Transport::kStream, .copied_bytes = 1000000});
  // All of the tensors, what gRPC needs to receive them, and one more chunk.
  EXPECT_EQ(cost.wire_bytes, 1000000 + 3 * 65536 + 1000000 / 128 +
                                 kMaxChunkBytes + 3 * kMessageEnvelopeBytes);
  EXPECT_EQ(cost.peak_bytes, 1350000 + cost.wire_bytes + kRecordsOfMillion);
  EXPECT_EQ(Cost({.transport = Transport::kStream, .copied_bytes = 20 << 20})
                .wire_bytes,
            16 * kMaxChunkBytes + 18 * kMessageEnvelopeBytes);
  EXPECT_EQ(cost.response_bytes, kMaxChunkBytes + kMessageEnvelopeBytes);
  EXPECT_EQ(cost.required_message_bytes, cost.response_bytes);
  // If the limit for messages is smaller than a full chunk, chunks are smaller,
  // too.
  EXPECT_EQ(Cost({.transport = Transport::kStream, .max_message_bytes = 65536})
                .required_message_bytes,
            65536);
}

TEST(CallCostTest, WhatLiesInSharedMemoryIsNotHeld) {
  const CallCost cost =
      Cost({.transport = Transport::kSharedMemory, .copied_bytes = 700});
  EXPECT_EQ(cost.wire_bytes, kEnvelopes);
  EXPECT_EQ(cost.peak_bytes, 50000 + 700 + kEnvelopes + kRecords);
  EXPECT_EQ(cost.required_message_bytes, kMessageEnvelopeBytes);
}

TEST(CallCostTest, AKeptMessageCountsWithAllThatIsInIt) {
  const int64_t usual = Cost({.copied_bytes = 1000000}).peak_bytes;
  const auto inline_with = [](int64_t kept_bytes) {
    return Cost({.copied_bytes = 1000000, .kept_message_bytes = kept_bytes})
        .peak_bytes;
  };
  EXPECT_EQ(inline_with(1000000 + kMessageEnvelopeBytes), usual);
  EXPECT_EQ(inline_with(1000128 + kMessageEnvelopeBytes), usual + 128 + 1);
  for (const Transport transport :
       {Transport::kStream, Transport::kSharedMemory}) {
    EXPECT_EQ(
        Cost({.transport = transport, .kept_message_bytes = 100}).peak_bytes,
        Cost({.transport = transport}).peak_bytes + 100);
  }
}

TEST(CallCostTest, ValuesAreCopiedTwice) {
  EXPECT_EQ(Cost({.output_as_values = true}).peak_bytes,
            Cost({}).peak_bytes + 2 * 300000);
}

TEST(CallCostTest, DecodingMayHoldMoreThanComputing) {
  const CallCost cost =
      Cost({.copied_bytes = 1000000, .decoding_bytes = 5000000});
  EXPECT_EQ(cost.peak_bytes, 6000000);
  EXPECT_LT(cost.computing_bytes, cost.peak_bytes);
}

TEST(CallCostTest, ListsAreSentAndHeld) {
  const CallCost plain = Cost({.copied_bytes = 1000000});
  // 2 numbers of 1 byte and 1 of 9; 2 floats.
  const AttentionOptions options{.query_offsets = {1, 127, int64_t{1} << 62},
                                 .alibi_slopes = {1, 2}};
  const CallCost listed = Cost({.copied_bytes = 1000000}, kEstimate, options);
  const int64_t wire_bytes = (16 + 1 + 1 + 9) + (16 + 2 * 4);
  const int64_t held_bytes = 26 * wire_bytes + 5 * 16;
  EXPECT_EQ(listed.wire_bytes, plain.wire_bytes + wire_bytes);
  EXPECT_EQ(listed.required_message_bytes,
            plain.required_message_bytes + wire_bytes);
  EXPECT_EQ(listed.peak_bytes, plain.peak_bytes + held_bytes);
  EXPECT_EQ(listed.answering_bytes, plain.answering_bytes + held_bytes);
  // In a stream, lists travel in the header.
  const TensorTransfer stream{.transport = Transport::kStream};
  EXPECT_EQ(Cost(stream, kEstimate, options).required_message_bytes,
            Cost(stream).required_message_bytes);
  AttentionOptions long_list;
  long_list.alibi_slopes.resize(1 << 20);
  EXPECT_EQ(Cost(stream, kEstimate, long_list).required_message_bytes,
            kMessageEnvelopeBytes + 16 + (4 << 20));
}

TEST(CallCostTest, SaturatesWhatDoesNotFit) {
  struct Case {
    MemoryEstimate estimate;
    TensorTransfer transfer;
  };
  const std::vector<Case> cases = {
      {{.output_bytes = kMax}, {}},
      {{.workspace_bytes = kMax}, {}},
      {{}, {.copied_bytes = kMax / 2 + 1}},
      {{.workspace_bytes = kMax / 2}, {.copied_bytes = kMax / 4 + 1}},
      {{.output_bytes = kMax / 2 + 1}, {.output_as_values = true}},
      {{}, {.copied_bytes = 1, .decoding_bytes = kMax}},
      {{.workspace_bytes = kMax}, {.transport = Transport::kStream}},
      {{.workspace_bytes = kMax}, {.transport = Transport::kSharedMemory}}};
  for (const auto& [estimate, transfer] : cases) {
    EXPECT_EQ(CostOfCall(estimate, {}, transfer).peak_bytes, kMax);
  }
  // The other figures stay exact.
  const CallCost cost = Cost({.copied_bytes = 1000},
                             {.output_bytes = 10, .workspace_bytes = kMax});
  EXPECT_EQ(cost.wire_bytes, 1000 + 1000 + 1000 / 128 + kEnvelopes);
  EXPECT_EQ(cost.required_message_bytes, 1000 + kMessageEnvelopeBytes);
}

}  // namespace
}  // namespace attnd
