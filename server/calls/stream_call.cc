#include "server/calls/stream_call.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "base/tsan_ordering.h"
#include "server/calls/unary_answer.h"
#include "server/codec/message_parser.h"
#include "server/codec/response_codec.h"
#include "server/status/status_convert.h"
#include "wire/message_sizes.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

std::optional<TensorRole> InputRole(v1::TensorRole role) {
  switch (role) {
    case v1::TENSOR_ROLE_QUERY:
      return kQuery;
    case v1::TENSOR_ROLE_KEY:
      return kKey;
    case v1::TENSOR_ROLE_VALUE:
      return kValue;
    case v1::TENSOR_ROLE_BIAS:
      return kBias;
    case v1::TENSOR_ROLE_MASK:
      return kMask;
    default:
      return std::nullopt;
  }
}

std::string RoleText(v1::TensorRole role) {
  const std::string& name = v1::TensorRole_Name(role);
  return name.empty() ? absl::StrCat(static_cast<int>(role)) : name;
}

using Request = v1::AttentionStreamRequest;

absl::Status SecondHeaderError() {
  return FieldError("header", "one header, in the first message",
                    "another header");
}

// Returns `status` with the path of its field from the root of the stream's
// message, instead of the path from the header.
absl::Status BelowHeader(const absl::Status& status) {
  const std::optional<std::string> field = FieldOf(status);
  return field ? WithField(status, absl::StrCat("header.", *field)) : status;
}

}  // namespace

// gRPC orders the last event before the destructor, and this tells thread
// sanitizer.
StreamCall::~StreamCall() { TsanAcquire(&mutex_); }

void StreamCall::Start(Admission::Reservation pending) {
  {
    const std::lock_guard lock(mutex_);
    pending_ = std::move(pending);
  }
  ReadNext();
}

void StreamCall::ReadNext() {
  stream_.Read();
  const std::lock_guard lock(mutex_);
  if (++reads_ > turns_) read_timer_.Start(clock_());
}

bool StreamCall::TakeTurn() {
  const std::lock_guard lock(mutex_);
  ++turns_;
  read_timer_.Stop(clock_());
  pending_.LeaveSlot();
  return !finish_;
}

void StreamCall::EndIfSilent(std::chrono::nanoseconds timeout) {
  bool unread = false;
  {
    const std::lock_guard lock(mutex_);
    const SteadyTime now = clock_();
    if (writing_) write_timer_.SawBytes(stream_.sent_bytes(), now);
    unread = write_timer_.IsOver(now, timeout);
    const bool silent = !finish_ && read_timer_.IsOver(now, timeout);
    if (!unread && !silent) return;
    write_timer_.Stop(now);
    breaking_ = unread;
    if (!finish_ || finish_->ok()) finish_ = IdleStatus(timeout, unread);
  }
  if (unread) {
    stream_.Break(UnreadText(timeout));
    const std::lock_guard lock(mutex_);
    breaking_ = false;
  }
  Pump();
}

absl::Status StreamCall::IdleStatus(std::chrono::nanoseconds timeout,
                                    bool unread) const {
  if (unread) {
    return WithReason(absl::DeadlineExceededError(UnreadText(timeout)),
                      kStreamIdle);
  }
  const std::string time = absl::FormatDuration(absl::FromChrono(timeout));
  return RefuseField(
      absl::StatusCode::kDeadlineExceeded, begun_ ? "chunk" : "header",
      begun_ ? absl::StrCat(
                   "expected, within each ", time,
                   " (--stream-idle-timeout), chunks of ", kMinProgressBytes,
                   " bytes in total, the rest of a tensor, or the end of the "
                   "stream, got less; begin the call when its tensors are "
                   "ready, or send smaller chunks, because a chunk counts "
                   "when all of it has arrived")
             : absl::StrCat("expected a header within ", time,
                            " (--stream-idle-timeout), got none"),
      kStreamIdle);
}

void StreamCall::OnMessage(absl::StatusOr<ReceivedMessage> received) {
  if (!TakeTurn()) return;
  absl::Status status = received.status();
  absl::StatusOr<std::optional<SplitMessage>> light;
  if (status.ok()) {
    light = SplitFirst(*received);
    status = light.status();
  }
  if (!status.ok()) {
    received = ReceivedMessage();
    Fail(std::move(status));
    return;
  }
  DecodeThread* const decoder = context().decoder;
  if (*light || decoder == nullptr) {
    Handle(*std::move(received), *std::move(light));
    return;
  }
  // Nothing else can end the call now and destroy its stream: this is the first
  // message, so nothing has been written, and no read is outstanding.
  decoder->Run(caller(), [this, self = shared_from_this(),
                          header = *std::move(received)]() mutable {
    Handle(std::move(header), std::nullopt);
  });
}

absl::StatusOr<std::optional<SplitMessage>> StreamCall::SplitFirst(
    const ReceivedMessage& received) {
  const std::lock_guard lock(mutex_);
  if (!begun_) ATTND_RETURN_IF_ERROR(Admit(received.size_bytes()));
  absl::StatusOr<std::optional<SplitMessage>> light =
      SplitIfLight(received, Request::descriptor());
  if (!light.ok() || *light || !begun_) return light;
  // Only a header has lists, so only a header can be heavy.
  return SecondHeaderError();
}

void StreamCall::Handle(ReceivedMessage received,
                        std::optional<SplitMessage> light) {
  absl::Status status = StopStatus();
  bool let_in = false;
  if (status.ok()) {
    const std::lock_guard lock(mutex_);
    let_in = !begun_;
    status = let_in ? TakeHeader(received, std::move(light))
                    : TakeChunk(received, std::move(light));
    if (let_in && status.ok()) source_.Keep(std::move(received));
  }
  // Frees the message before the next one is read, and before AllocateOutputs
  // shrinks the reservation.
  received = ReceivedMessage();
  if (status.ok() && let_in) {
    const std::lock_guard lock(mutex_);
    status = AllocateOutputs();
    header_due_ = status.ok();
  }
  if (!status.ok()) {
    Fail(std::move(status));
    return;
  }
  if (let_in) Pump();
  ReadNext();
}

void StreamCall::OnEnd() {
  if (!TakeTurn()) return;
  absl::Status status = StopStatus();
  if (status.ok()) {
    const std::lock_guard lock(mutex_);
    status = CheckComplete();
  }
  if (!status.ok()) {
    Fail(std::move(status));
    return;
  }
  Submit(
      [this, self = shared_from_this()](absl::Status end,
                                        const RunStats& stats) {
        source_.Clear();
        Computed(std::move(end), stats);
      },
      source_.empty() ? nullptr : &source_);
}

void StreamCall::OnWritten(bool ok) {
  if (!ok) Cancel();
  {
    const std::lock_guard lock(mutex_);
    busy_ = false;
    writing_ = false;
    write_timer_.Stop(clock_());
    write_timer_.Complete(clock_());
    if (!ok && !finish_) finish_ = StopStatus();
  }
  Pump();
}

absl::Status StreamCall::TakeHeader(const ReceivedMessage& received,
                                    std::optional<SplitMessage> light) {
  Request request;
  ATTND_ASSIGN_OR_RETURN(
      const SplitMessage split,
      ParseMessage(received, std::move(light), reservation(), request));
  if (!request.has_header()) {
    return FieldError("header", "a header in the first message",
                      request.has_chunk() ? "a chunk" : "an empty message");
  }
  const AttentionTensors tensors = AttentionTensors::OfStream(request.header());
  ATTND_RETURN_IF_ERROR(BelowHeader(TakeRequest(tensors, split, source_)));
  reservation().SetMessageShare(wire_bytes());
  for (size_t i = 0; i < kTensorRoles; ++i) {
    const auto& [path, tensor] = tensors.by_role[i];
    if (tensor == nullptr) continue;
    intakes_[i] = {.path = absl::StrCat("header.", path),
                   .size_bytes = static_cast<int64_t>(
                       Input(static_cast<TensorRole>(i)).size()),
                   .in_chunks = ComesInChunks(*tensor)};
  }
  begun_ = true;
  read_timer_.Complete(clock_());
  return absl::OkStatus();
}

absl::Status StreamCall::TakeChunk(const ReceivedMessage& received,
                                   std::optional<SplitMessage> light) {
  Request request;
  // The reservation already has the bytes for messages. It grows for a message
  // that is larger than these, which CheckChunk refuses.
  ATTND_ASSIGN_OR_RETURN(
      const SplitMessage split,
      ParseMessage(received, std::move(light), reservation(), request,
                   computing_bytes() - wire_bytes()));
  reservation().ShrinkTo(computing_bytes());
  if (request.has_header()) {
    return SecondHeaderError();
  }
  if (!request.has_chunk()) {
    return FieldError("chunk", "a chunk", "an empty message");
  }
  const v1::TensorChunk& chunk = request.chunk();
  const PayloadRange& data = PayloadOf(split, chunk.data());
  ATTND_RETURN_IF_ERROR(CheckChunk(chunk, data.size_bytes));
  const TensorRole role = *InputRole(chunk.role());
  received.CopyTo(
      data,
      Input(role).subspan(static_cast<size_t>(chunk.offset_bytes())).data());
  Intake& intake = intakes_[role];
  intake.received_bytes += data.size_bytes;
  received_bytes_ += data.size_bytes;
  read_timer_.SawBytes(received_bytes_, clock_());
  // A complete tensor counts even if it or its last chunk is small.
  if (intake.received_bytes == intake.size_bytes) {
    read_timer_.Complete(clock_());
  }
  return absl::OkStatus();
}

absl::Status StreamCall::CheckChunk(const v1::TensorChunk& chunk,
                                    int64_t size_bytes) {
  const std::optional<TensorRole> role = InputRole(chunk.role());
  if (!role) {
    return FieldError("chunk.role", "QUERY, KEY, VALUE, BIAS or MASK",
                      RoleText(chunk.role()));
  }
  const Intake& intake = intakes_[*role];
  if (!intake.in_chunks) {
    return FieldError(
        "chunk.role", "a tensor that the header leaves to chunks",
        absl::StrCat(RoleText(chunk.role()),
                     intake.path.empty() ? ", which the header does not have"
                                         : ", whose data the header holds"));
  }
  if (size_bytes < 1 || size_bytes > kMaxChunkBytes) {
    return FieldError("chunk.data",
                      absl::StrCat("1 to ", kMaxChunkBytes, " bytes"),
                      absl::StrCat(size_bytes));
  }
  if (chunk.offset_bytes() != intake.received_bytes) {
    return FieldError(
        "chunk.offset_bytes",
        absl::StrCat(intake.received_bytes, ", because the earlier chunks of ",
                     RoleText(chunk.role()), " end there"),
        absl::StrCat(chunk.offset_bytes()));
  }
  const int64_t left = intake.size_bytes - intake.received_bytes;
  if (size_bytes > left) {
    return FieldError(
        "chunk.data",
        absl::StrCat("at most ", left, " bytes, which is all that ",
                     intake.path, " still needs"),
        absl::StrCat(size_bytes));
  }
  return absl::OkStatus();
}

absl::Status StreamCall::CheckComplete() const {
  if (!begun_) {
    return FieldError("header", "a header in the first message",
                      "the end of the stream");
  }
  for (const Intake& intake : intakes_) {
    if (!intake.in_chunks || intake.received_bytes == intake.size_bytes) {
      continue;
    }
    return FieldError(
        intake.path, absl::StrCat(intake.size_bytes, " bytes in chunks"),
        absl::StrCat("the end of the stream after ", intake.received_bytes));
  }
  return absl::OkStatus();
}

void StreamCall::Fail(absl::Status status) {
  {
    const std::lock_guard lock(mutex_);
    if (!finish_) finish_ = std::move(status);
  }
  Pump();
}

void StreamCall::Computed(absl::Status status, const RunStats& stats) {
  if (!status.ok()) {
    Fail(std::move(status));
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    set_stats(stats);
    computed_ = true;
    reservation().SetMessageShare(0);
    // Returns the slot now, because writing takes as long as the client likes.
    reservation().LeaveSlot();
    ShrinkToAnswer();
  }
  Pump();
}

void StreamCall::Pump() {
  OutgoingMessage message;
  std::optional<absl::Status> finish;
  {
    const std::lock_guard lock(mutex_);
    if (busy_ || breaking_ || (!finish_ && !header_due_ && !computed_)) return;
    busy_ = true;
    if (finish_) {
      finish = finish_;
      pending_.LeaveSlot();
      reservation().LeaveSlot();
    } else {
      message = std::exchange(header_due_, false)
                    ? EncodeStreamHeader(answers())
                    : NextAnswer();
      writing_ = true;
      write_timer_.Start(clock_());
    }
  }
  if (finish) {
    stream_.Finish(*finish);
  } else {
    stream_.Write(std::move(message));
  }
}

OutgoingMessage StreamCall::NextAnswer() {
  const auto max_chunk_bytes = static_cast<size_t>(std::min(
      kMaxChunkBytes, context().max_message_bytes - kMessageEnvelopeBytes));
  for (; next_tensor_ < answers().size(); ++next_tensor_, next_offset_ = 0) {
    const ResponseTensor& tensor = answers()[next_tensor_];
    const size_t offset = next_offset_;
    const size_t left = tensor.data.size() - offset;
    if (left == 0) continue;
    const size_t size = std::min(left, max_chunk_bytes);
    next_offset_ += size;
    return EncodeChunk(tensor, offset, size, shared_from_this());
  }
  finish_ = absl::OkStatus();
  return EncodeStreamStats(stats());
}

}  // namespace attnd::server
