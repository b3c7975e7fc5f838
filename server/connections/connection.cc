#include "server/connections/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "wire/message_sizes.h"

namespace attnd::server {

double RateLimit::recent(SteadyTime now) const {
  const double passed_s =
      std::chrono::duration<double>(now - counted_at_).count();
  return std::max(0.0, recent_ - std::max(0.0, passed_s) * rate_.per_second);
}

bool RateLimit::Take(SteadyTime now) {
  recent_ = recent(now);
  counted_at_ = std::max(counted_at_, now);
  // An event that exceeds the rate is not counted. Otherwise a client that goes
  // on would delay the time from which others may go on.
  if (recent_ + 1 > rate_.burst) return false;
  ++recent_;
  return true;
}

Connection::Connection(int fd, std::string peer, const ConnectionLimits& limits,
                       std::shared_ptr<ConnectionTotals> totals, SteadyTime now)
    : peer_(std::move(peer)),
      limits_(limits),
      totals_(std::move(totals)),
      accepted_at_(now),
      fd_(fd),
      resets_(limits.resets),
      answered_frames_(limits.answered_frames),
      idle_since_(now) {}

Connection::~Connection() { Closed(); }

Connection::Verdict Connection::Received(const char* data, size_t size,
                                         SteadyTime now) {
  turn_bytes_ += size;
  has_received_.store(true, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  if (!end_reason_.empty()) return Verdict::kMustEnd;
  too_many_resets_ = false;
  const bool fine = in_.Read(
      data, size,
      [&](const FrameHeader& frame) { return BeginFrame(frame, now); },
      [&](const FrameHeader& frame, size_t bytes) {
        return Payload(frame, bytes, now);
      },
      [&](const FrameHeader& frame) { return EndFrame(frame); });
  if (!fine) return Verdict::kMustEnd;
  return too_many_resets_ ? Verdict::kTooManyResets : Verdict::kOk;
}

bool Connection::BeginFrame(const FrameHeader& frame, SteadyTime now) {
  has_frame_ = true;
  switch (frame.type) {
    case FrameType::kHeaders:
    case FrameType::kContinuation:
      if (frame.type == FrameType::kHeaders || header_block_bytes_ < 0) {
        header_block_bytes_ = 0;
        header_block_at_ = now;
      }
      // Frames without a payload count too, because gRPC needs time for them.
      header_block_bytes_ +=
          static_cast<int64_t>(FrameHeader::kBytes) + frame.payload_bytes;
      if (header_block_bytes_ > limits_.header_block_bytes) {
        return Refuse("it sent a block of headers of more than 64 KiB");
      }
      return frame.type != FrameType::kHeaders || BeginCall(frame.stream, now);
    case FrameType::kRstStream:
      return Reset(frame.stream, now);
    case FrameType::kSettings:
    case FrameType::kPing:
      if (frame.has(FrameHeader::kAck) || answered_frames_.Take(now)) {
        return true;
      }
      return Refuse("it sent too many PING or SETTINGS frames");
    case FrameType::kGoaway:
      if (frame.payload_bytes <= limits_.goaway_bytes) return true;
      return Refuse("it sent a GOAWAY frame of more than 4 KiB");
    default:
      return true;
  }
}

bool Connection::Payload(const FrameHeader& frame, size_t bytes,
                         SteadyTime now) {
  if (frame.type != FrameType::kData) return true;
  const auto call = calls_.find(frame.stream);
  if (call == calls_.end()) return true;
  call->second.received_bytes += static_cast<int64_t>(bytes);
  call->second.bytes_since_progress += static_cast<int64_t>(bytes);
  if (call->second.bytes_since_progress >= kMinProgressBytes) {
    call->second.bytes_since_progress = 0;
    call->second.progress_at = now;
  }
  return true;
}

bool Connection::EndFrame(const FrameHeader& frame) {
  const bool headers = frame.type == FrameType::kHeaders ||
                       frame.type == FrameType::kContinuation;
  if (headers && frame.has(FrameHeader::kEndHeaders)) header_block_bytes_ = -1;
  if ((frame.type == FrameType::kData || frame.type == FrameType::kHeaders) &&
      frame.has(FrameHeader::kEndStream)) {
    const auto call = calls_.find(frame.stream);
    if (call != calls_.end()) call->second.client_ended = true;
  }
  return true;
}

// Headers with the stream number of an earlier call are the trailers of that
// call. Clients may use only odd numbers. gRPC ignores even numbers and accepts
// lower odd numbers after them, so an even number begins no call here either.
bool Connection::BeginCall(uint32_t stream, SteadyTime now) {
  if (stream % 2 == 0 || stream <= last_stream_) return true;
  last_stream_ = stream;
  calls_[stream].progress_at = now;
  ++open_calls_;
  ++totals_->open_calls;
  if (open_calls_ <= limits_.open_calls) return true;
  return Refuse("it opened more calls at a time than it was allowed to");
}

bool Connection::Reset(uint32_t stream, SteadyTime now) {
  const auto call = calls_.find(stream);
  if (call == calls_.end()) return true;
  ForgetCall(stream);
  if (calls_.empty()) idle_since_ = now;
  if (!resets_.Take(now)) {
    return Refuse("it opened and reset too many calls");
  }
  const std::lock_guard lock(totals_->mutex);
  if (!totals_->resets.Take(now)) too_many_resets_ = true;
  return true;
}

bool Connection::Refuse(std::string_view reason) {
  if (end_reason_.empty()) end_reason_ = reason;
  return false;
}

void Connection::ForgetCall(uint32_t stream) {
  if (calls_.erase(stream) == 0) return;
  --open_calls_;
  --totals_->open_calls;
}

void Connection::Sent(const char* data, size_t size) {
  const std::lock_guard lock(mutex_);
  const auto ignore = [](const FrameHeader&, size_t) { return true; };
  out_.Read(
      data, size, [](const FrameHeader&) { return true; }, ignore,
      [this](const FrameHeader& frame) {
        const bool ends = frame.type == FrameType::kRstStream ||
                          ((frame.type == FrameType::kData ||
                            frame.type == FrameType::kHeaders) &&
                           frame.has(FrameHeader::kEndStream));
        if (ends) {
          ForgetCall(frame.stream);
          if (calls_.empty()) idle_since_ = std::chrono::steady_clock::now();
        } else if (frame.type == FrameType::kHeaders) {
          const auto call = calls_.find(frame.stream);
          if (call != calls_.end()) call->second.answered = true;
        }
        return true;
      });
}

std::string_view Connection::Overdue(SteadyTime now,
                                     std::chrono::nanoseconds timeout) {
  const std::lock_guard lock(mutex_);
  if (!has_frame_ && now - accepted_at_ >= timeout) {
    return "it sent no HTTP/2 frame in time (--stream-idle-timeout)";
  }
  if (header_block_bytes_ >= 0 && now - header_block_at_ >= timeout) {
    return "it did not end a block of headers in time (--stream-idle-timeout)";
  }
  for (const auto& [stream, call] : calls_) {
    if (!call.client_ended && !call.answered &&
        now - call.progress_at >= timeout) {
      return "it did not send 64 KiB of an unfinished message in time "
             "(--stream-idle-timeout)";
    }
  }
  return {};
}

bool Connection::End(std::string_view reason) {
  const std::lock_guard lock(mutex_);
  if (end_reason_.empty()) end_reason_ = reason;
  if (fd_ < 0 || std::exchange(ended_, true)) return false;
  shutdown(fd_, SHUT_RDWR);
  const int64_t calls = open_calls_.exchange(0);
  totals_->open_calls -= calls;
  totals_->ending_calls += calls;
  ending_calls_ = calls;
  calls_.clear();
  return true;
}

void Connection::Closed() {
  const std::lock_guard lock(mutex_);
  fd_ = -1;
  totals_->open_calls -= open_calls_.exchange(0);
  totals_->ending_calls -= std::exchange(ending_calls_, 0);
  calls_.clear();
}

void Connection::WatchedBy(int epoll, const epoll_event& event) {
  const std::lock_guard lock(mutex_);
  epoll_ = epoll;
  epoll_event_ = event;
  can_rearm_ = true;
}

// gRPC waits for edges. Setting the events again makes the kernel report an
// edge.
void Connection::Rearm() {
  const std::lock_guard lock(mutex_);
  if (fd_ < 0 || epoll_ < 0) return;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, fd_, &epoll_event_);
}

bool Connection::TurnIsOver() {
  if (turn_bytes_ < kTurnBytes) return false;
  if (turn_ending_.exchange(true)) {
    turn_ending_ = false;
    turn_bytes_ = 0;
  }
  return true;
}

std::string_view Connection::end_reason() const {
  const std::lock_guard lock(mutex_);
  return end_reason_;
}

int64_t Connection::HeldBytes(SteadyTime now) const {
  const std::lock_guard lock(mutex_);
  int64_t bytes = static_cast<int64_t>(resets_.recent(now)) * kCallBytes;
  for (const auto& [stream, call] : calls_) {
    bytes += kCallBytes;
    if (!call.client_ended) bytes += call.received_bytes;
  }
  return bytes;
}

double Connection::RecentResets(SteadyTime now) const {
  const std::lock_guard lock(mutex_);
  return resets_.recent(now);
}

SteadyTime Connection::idle_since() const {
  const std::lock_guard lock(mutex_);
  return calls_.empty() ? idle_since_ : SteadyTime::max();
}

}  // namespace attnd::server
