// The stream of messages that a call reads and writes, for calls that must not
// know gRPC.
#ifndef ATTND_SERVER_MESSAGE_STREAM_H_
#define ATTND_SERVER_MESSAGE_STREAM_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "server/wire_message.h"

namespace attnd::server {

// At most one Write is outstanding, so nothing piles up before a slow client;
// Finish comes once, after the last. The stream may be gone when it returns,
// but not before what the stream has called, OnMessage and the like, has
// returned.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual void Write(ResponsePieces message) = 0;
  // How much of the outstanding Write has left the server, counted in steps of
  // kLeastMoveBytes or less. Comes only while there is one.
  virtual int64_t sent_bytes() = 0;
  // Ends an outstanding Write with OnWritten(false), though its client takes
  // nothing. `why` is what the client reads, should it ever read again. Comes
  // before Finish.
  virtual void Break(const std::string& why) = 0;
  virtual void Finish(const absl::Status& status) = 0;
};

// Both ways. At most one Read is outstanding: what the client sends faster
// waits in its own buffers. One that comes after Finish ends with OnEnd.
class MessageStream : public MessageSink {
 public:
  virtual void Read() = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_MESSAGE_STREAM_H_
