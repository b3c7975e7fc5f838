// The interfaces through which calls read and write streams of messages, so
// that they need not know gRPC. The reactors in server/rpc/ implement them.
#ifndef ATTND_SERVER_CALLS_MESSAGE_STREAM_H_
#define ATTND_SERVER_CALLS_MESSAGE_STREAM_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "wire/outgoing_message.h"

namespace attnd::server {

// Sends the messages of one call. Each Write ends with a call of OnWritten of
// the call. Have at most one Write outstanding, so that messages do not pile up
// if the client is slow. Call Finish once, after the last Write. The sink may
// be destroyed when Finish returns, but not before callbacks that it has called
// (OnMessage, OnWritten) have returned.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual void Write(OutgoingMessage message) = 0;
  // Returns how many bytes of the outstanding Write have left the server,
  // counted in steps of at most kMinProgressBytes. Call it only while a Write
  // is outstanding.
  virtual int64_t sent_bytes() = 0;
  // Ends the rpc, so that an outstanding Write ends with OnWritten(false) even
  // if the client reads nothing. `why` is the error text for the client, which
  // gets it only if it reads again. Call it only before Finish.
  virtual void Break(const std::string& why) = 0;
  // Ends the rpc with `status`.
  virtual void Finish(const absl::Status& status) = 0;
};

// A sink that also receives messages. Each Read ends with a call of OnMessage
// or OnEnd of the call. Have at most one Read outstanding. Messages that a
// faster client sends meanwhile wait at the client. A Read after Finish ends
// with OnEnd.
class MessageStream : public MessageSink {
 public:
  virtual void Read() = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_MESSAGE_STREAM_H_
