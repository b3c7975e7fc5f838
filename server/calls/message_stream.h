// The stream of messages that a call reads and writes, for calls that must not
// know gRPC.
#ifndef ATTND_SERVER_CALLS_MESSAGE_STREAM_H_
#define ATTND_SERVER_CALLS_MESSAGE_STREAM_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "wire/outgoing_message.h"

namespace attnd::server {

// Have at most one Write outstanding, so that nothing piles up before a slow
// client. Call Finish once, after the last Write. The stream may be gone when
// Finish returns, but not before callbacks of the stream, such as OnMessage,
// have returned.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual void Write(OutgoingMessage message) = 0;
  // How many bytes of the outstanding Write have left the server, counted in
  // steps of at most kLeastMoveBytes. Call it only while a Write is
  // outstanding.
  virtual int64_t sent_bytes() = 0;
  // Ends an outstanding Write with OnWritten(false) even if the client reads
  // nothing. The client gets the text `why` if it ever reads again. Call it
  // only before Finish.
  virtual void Break(const std::string& why) = 0;
  virtual void Finish(const absl::Status& status) = 0;
};

// A sink that also reads. Have at most one Read outstanding; what a faster
// client sends waits in its own buffers. A Read after Finish ends with OnEnd.
class MessageStream : public MessageSink {
 public:
  virtual void Read() = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_MESSAGE_STREAM_H_
