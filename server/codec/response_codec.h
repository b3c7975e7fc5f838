// From results to the contract's messages. A tensor's bytes go out from where
// the kernel wrote them: the message around them is encoded by hand.
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
#include "server/codec/wire_message.h"

namespace attnd::server {

v1::ExecutionStats EncodeStats(const RunStats& stats);

// A tensor of an answer.
struct ResponseTensor {
  int field_number = 0;  // in the answer's message
  DataType dtype = DataType::kF32;
  std::vector<int64_t> shape = {};
  std::span<const std::byte> data = {};
  // Set where the client finds the data there.
  std::optional<v1::SharedMemory> place = {};
};

// What an attention method answers.
struct AttentionAnswer {
  std::vector<ResponseTensor> tensors;
  int stats_field_number = 0;
  RunStats stats = {};
};

// The three messages of AttentionStream's answer. `tensor` is of
// AttentionResponse; a chunk's piece borrows its bytes, from `offset` on, and
// keeps `owner` alive.
ResponsePieces EncodeStreamHeader(const std::vector<ResponseTensor>& tensors);
ResponsePieces EncodeChunk(const ResponseTensor& tensor, size_t offset,
                           size_t size, std::shared_ptr<const void> owner);
ResponsePieces EncodeStreamStats(const RunStats& stats);

// The answer's message. With kData the pieces borrow the elements but of small
// tensors, with kValues, for which all must be F32, they hold a copy, and with
// kSharedMemory they say where the elements are; they keep `owner` alive.
ResponsePieces EncodeAnswer(const AttentionAnswer& answer, PayloadKind kind,
                            std::shared_ptr<const void> owner);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_RESPONSE_CODEC_H_
