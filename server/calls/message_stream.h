// The interfaces through which calls read and write streams of messages, so
// that they need not know gRPC. The reactors in server/rpc/ implement them.
#ifndef ATTND_SERVER_CALLS_MESSAGE_STREAM_H_
#define ATTND_SERVER_CALLS_MESSAGE_STREAM_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "wire/outgoing_message.h"

namespace attnd::server {

// Sends the messages of one call. When a message that was passed to Write has
// been sent, OnWritten of the call runs. Do not call Write again before that,
// so that messages do not pile up if the client is slow. Call Finish once,
// after the last Write. The sink may be destroyed once Finish has returned and
// no callback that it has called (OnMessage, OnWritten) is still running.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual void Write(OutgoingMessage message) = 0;
  // Returns how many bytes of the message that is being sent gRPC has written
  // to the socket, in steps of at most kMinProgressBytes. Call it only between
  // Write and OnWritten.
  virtual int64_t sent_bytes() = 0;
  // Ends the rpc, so that OnWritten(false) follows for a message that is being
  // sent, even if the client reads nothing. `why` is the error text for the
  // client, which gets it only if it reads again. Call it only before Finish.
  virtual void Break(const std::string& why) = 0;
  // Ends the rpc with `status`.
  virtual void Finish(const absl::Status& status) = 0;
};

// A sink that also receives messages. For each Read, OnMessage or OnEnd of the
// call runs later. Do not call Read again before that. If a client sends faster
// than the call reads, its messages wait at the client. A Read after Finish
// leads to OnEnd.
class MessageStream : public MessageSink {
 public:
  virtual void Read() = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_MESSAGE_STREAM_H_
