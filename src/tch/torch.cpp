// Operations that tch lacks: a custom autograd function, a view of a tensor's memory, and a tensor that owns a
// buffer of Rust. The C interface of src/tch/torch.rs.
//
// As in tch, a tensor is an at::Tensor*. The receiver of a pointer owns the tensor, except if the pointer is const.
// Functions do not throw: on failure they return false, and lr_relax_error returns the message.

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/headeronly/version.h>
#include <ATen/ops/from_blob.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

#define LR_RELAX_TEXT(x) #x
#define LR_RELAX_STRING(x) LR_RELAX_TEXT(x)
#define LR_RELAX_RELEASE         \
  LR_RELAX_STRING(TORCH_VERSION_MAJOR) \
  "." LR_RELAX_STRING(TORCH_VERSION_MINOR) "." LR_RELAX_STRING(TORCH_VERSION_PATCH)

thread_local std::string error;

template <typename F>
bool guarded(F&& body) noexcept {
  try {
    body();
    return true;
  } catch (const c10::Error& e) {
    error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    error = e.what();
  } catch (...) {
    error = "unknown error";
  }
  return false;
}

// The closure of Rust that computes the gradient from the saved tensors.
struct Closure : torch::CustomClassHolder {
  using Backward = bool(const void* context, Tensor** saved, size_t n_saved, const Tensor* upstream,
                        bool create_graph, bool retain_graph, Tensor** gradient);
  void* context;
  Backward* call;
  void (*drop)(void*);

  Closure(void* context, Backward* call, void (*drop)(void*)) : context(context), call(call), drop(drop) {}
  Closure(const Closure&) = delete;
  ~Closure() override { drop(context); }
};

// A function whose loss is already computed and whose gradient is computed by the closure.
struct Precomputed : torch::autograd::Function<Precomputed> {
  static Tensor forward(AutogradContext* ctx, const Tensor& /*input*/, const Tensor* loss,
                        const variable_list* saved, const c10::intrusive_ptr<Closure>* closure) {
    ctx->save_for_backward(*saved);
    ctx->saved_data["closure"] = c10::IValue::make_capsule(*closure);
    return *loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    // This checks that no saved tensor was modified in place.
    variable_list saved = ctx->get_saved_variables();
    auto capsule = ctx->saved_data["closure"].toCapsule();
    const auto* closure = static_cast<const Closure*>(capsule.get());
    std::vector<Tensor*> owned;
    for (auto& tensor : saved) {
      owned.push_back(new Tensor(std::move(tensor)));
    }
    Tensor* gradient = nullptr;
    bool success = closure->call(closure->context, owned.data(), owned.size(), &upstream[0],
                                 c10::GradMode::is_enabled(),
                                 torch::autograd::get_current_graph_task_keep_graph(), &gradient);
    TORCH_CHECK(success, error);
    std::unique_ptr<Tensor> result(gradient);
    return {std::move(*result), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// lr_relax/_torch_release.py reads this string from the file of the extension before it loads the extension.
__attribute__((used)) extern const char lr_relax_built_for[] = "lr_relax is built for torch " LR_RELAX_RELEASE;

const char* lr_relax_error() { return error.c_str(); }

void lr_relax_set_error(const char* text, size_t length) {
  guarded([&] { error.assign(text, length); });
}

struct LrRelaxView {
  const void* data;
  const int64_t* sizes;
  const int64_t* strides;
  size_t dim;
  int32_t scalar_type;
  int32_t device_type;
  int32_t device_index;
  // Whether the memory holds the values themselves: false for lazy negation or conjugation and without storage.
  bool is_plain;
};

bool lr_relax_view(const Tensor* tensor, LrRelaxView* out) {
  return guarded([&] {
    const Tensor& t = *tensor;
    TORCH_CHECK(t.defined(), "is undefined");
    TORCH_CHECK(t.layout() == at::kStrided && !t.is_nested(), "does not have a strided layout");
    TORCH_CHECK(!t.is_quantized(), "is quantized");
    auto sizes = t.sizes();
    auto strides = t.strides();
    bool is_plain = !t.is_neg() && !t.is_conj() && !t._is_zerotensor() && t.has_storage();
    const void* data = t.is_cpu() && is_plain ? t.const_data_ptr() : nullptr;
    *out = {data,
            sizes.data(),
            strides.data(),
            sizes.size(),
            static_cast<int32_t>(t.scalar_type()),
            static_cast<int32_t>(t.device().type()),
            t.device().index(),
            is_plain};
  });
}

// A contiguous CPU tensor over the memory at `data`. It drops the owner of the memory when it is freed, on any
// thread; on failure the owner is dropped at once.
bool lr_relax_from_blob(void* data, const int64_t* sizes, size_t dim, int32_t scalar_type, void* owner,
                        void (*drop)(void*), Tensor** out) {
  std::unique_ptr<void, void (*)(void*)> owned(owner, drop);
  return guarded([&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type));
    auto keep = [block = std::shared_ptr<void>(owned.release(), drop)](void*) {};
    *out = new Tensor(at::from_blob(data, at::IntArrayRef(sizes, dim), std::move(keep), options));
  });
}

bool lr_relax_needs_grad(const Tensor* tensor) {
  return c10::GradMode::is_enabled() && tensor->requires_grad();
}

bool lr_relax_attach(const Tensor* loss, const Tensor* input, const Tensor* const* saved, size_t n_saved,
                     void* context, Closure::Backward* call, void (*drop)(void*), Tensor** out) {
  std::unique_ptr<void, void (*)(void*)> owned(context, drop);
  return guarded([&] {
    auto closure = c10::make_intrusive<Closure>(context, call, drop);
    owned.release();
    variable_list tensors;
    for (size_t i = 0; i < n_saved; ++i) {
      tensors.push_back(saved[i] == nullptr ? Tensor() : *saved[i]);
    }
    *out = new Tensor(Precomputed::apply(*input, loss, &tensors, &closure));
  });
}

// The gradient of `loss` with respect to `input`, times `upstream`, with a graph for further differentiation.
bool lr_relax_gradient(const Tensor* loss, const Tensor* input, const Tensor* upstream, Tensor** out) {
  return guarded([&] {
    auto gradients = torch::autograd::grad({*loss}, {*input}, {*upstream}, /*retain_graph=*/true, /*create_graph=*/true);
    *out = new Tensor(std::move(gradients[0]));
  });
}

}  // extern "C"
