// Encodes results as messages of the contract. A tensor's bytes are sent from
// where the kernel wrote them.
#ifndef ATTND_SERVER_CODEC_RESPONSE_CODEC_H_
#define ATTND_SERVER_CODEC_RESPONSE_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "server/codec/request_codec.h"
#include "wire/outgoing_message.h"

namespace attnd::server {

v1::ExecutionStats EncodeStats(const RunStats& stats);

// A tensor of an answer. Borrows its data.
struct ResponseTensor {
  int field_number = 0;  // in the answer's message
  DataType dtype = DataType::kF32;
  std::vector<int64_t> shape = {};
  std::span<const std::byte> data = {};
  // Set if the client finds the data there.
  std::optional<v1::SharedMemory> place = {};
};

// The answer of an attention method.
struct AttentionAnswer {
  std::vector<ResponseTensor> tensors;
  int stats_field_number = 0;
  RunStats stats = {};
};

// The three kinds of messages of AttentionStream's answer. `tensor` and
// `tensors` belong to an AttentionResponse. EncodeChunk borrows `size` bytes of
// the tensor from `offset` on, and the message keeps `owner` alive.
OutgoingMessage EncodeStreamHeader(const std::vector<ResponseTensor>& tensors);
OutgoingMessage EncodeChunk(const ResponseTensor& tensor, size_t offset,
                            size_t size, std::shared_ptr<const void> owner);
OutgoingMessage EncodeStreamStats(const RunStats& stats);

// Encodes an answer whose message keeps `owner` alive until it is sent. With
// kData it borrows the data of large tensors. With kValues, for which all
// tensors must be F32, it copies them. With kSharedMemory it says where they
// are.
OutgoingMessage EncodeAnswer(const AttentionAnswer& answer, PayloadKind kind,
                             std::shared_ptr<const void> owner);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_RESPONSE_CODEC_H_
