// Loads input tensors that are not yet in a job's buffers, for example because
// they are in a received message. The job's workers call an InputSource to copy
// the inputs, part by part and right before they read them.
#ifndef ATTND_CORE_INPUT_SOURCE_H_
#define ATTND_CORE_INPUT_SOURCE_H_

#include <cstdint>

namespace attnd {

// A job loads each byte once. The functions are called by several threads at
// the same time, and must not throw, block or allocate.
class InputSource {
 public:
  virtual ~InputSource() = default;

  // Returns the number of pieces that all inputs are divided into. The pieces
  // of keys and values come last.
  virtual int64_t pieces() const = 0;
  // Copies piece `piece`, 0 <= piece < pieces(), to its place in the buffers.
  virtual void LoadPiece(int64_t piece) = 0;

  // Returns how many pieces come before those of keys and values. If keys or
  // values share memory with another input, returns pieces(); the two functions
  // below are then not called.
  virtual int64_t pieces_before_keys() const = 0;
  // These copy `size_bytes` bytes of the key tensor, or of the value tensor,
  // that begin `offset_bytes` into it. Tiles that pack keys and values call
  // them instead of loading the pieces of keys and values.
  virtual void LoadKeys(int64_t offset_bytes, int64_t size_bytes) = 0;
  virtual void LoadValues(int64_t offset_bytes, int64_t size_bytes) = 0;
};

}  // namespace attnd

#endif  // ATTND_CORE_INPUT_SOURCE_H_
