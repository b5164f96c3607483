//! `#[remote]`: makes an ordinary function submittable as a task.

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::{FnArg, GenericArgument, ItemFn, Pat, PathArguments, ReturnType, Type, parse_macro_input};

/// Makes a function submittable as a task.
///
/// The function stays as it is. Beside it appears a module of the same name with
/// `task(args…) -> Task<R>` (to submit with options) and `remote(args…) -> ObjectRef<R>` (to submit
/// from inside a task). Every argument may be given as a value or as an `ObjectRef` of its type. A
/// function that returns `Result<R, E>` with `E: Display` fails its task with the error's text. One that returns a tuple
/// or an array can be submitted so that each element is an object of its own: `client.submit_split(name::task(…))`. One that
/// returns `mobula::Streamed` is submitted by `client.submit_stream(name::task(…))`.
///
/// The function must stand in a module (not inside another function) and must not be generic.
#[proc_macro_attribute]
pub fn remote(_attributes: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    match expand(&function) {
        Ok(tokens) => tokens.into(),
        Err(error) => error.to_compile_error().into(),
    }
}

fn expand(function: &ItemFn) -> syn::Result<proc_macro2::TokenStream> {
    let signature = &function.sig;
    let name = &signature.ident;
    let visibility = &function.vis;
    if !signature.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(&signature.generics, "a remote function must not be generic"));
    }
    let mut names = Vec::new();
    let mut types = Vec::new();
    for (index, input) in signature.inputs.iter().enumerate() {
        let FnArg::Typed(input) = input else {
            return Err(syn::Error::new_spanned(input, "a remote function has no self"));
        };
        names.push(match input.pat.as_ref() {
            Pat::Ident(ident) => ident.ident.clone(),
            _ => format_ident!("arg{index}"),
        });
        types.push(input.ty.as_ref().clone());
    }
    let (returned, fallible) = returned_type(&signature.output);
    let call = quote!(super::#name(#(#names),*));
    let encode = if fallible {
        quote!(::mobula::function::encode_result(out))
    } else {
        quote!(::mobula::function::encode_value(&out))
    };
    let take = quote!(#(let #names: #types = ::mobula::FromArgs::take(&mut __reader)?;)*);
    let run = if signature.asyncness.is_some() {
        quote! {
            fn run(mut __reader: ::mobula::ArgReader)
                -> ::mobula::function::RunFuture {
                Box::pin(async move {
                    #take
                    __reader.finish()?;
                    let out = #call.await;
                    #encode
                })
            }
            ::mobula::inventory::submit! {
                ::mobula::Function::new(module_path!(), ::mobula::function::Run::Async(run))
            }
        }
    } else {
        quote! {
            fn run(mut __reader: ::mobula::ArgReader) -> ::mobula::function::RunResult {
                #take
                __reader.finish()?;
                let out = #call;
                #encode
            }
            ::mobula::inventory::submit! {
                ::mobula::Function::new(module_path!(), ::mobula::function::Run::Sync(run))
            }
        }
    };
    let doc = format!("Submits `{name}` as a task.");
    Ok(quote! {
        #function

        #[doc = #doc]
        #[allow(unused_imports, unused_mut, private_interfaces, dead_code)]
        #visibility mod #name {
            use super::*;

            /// The task, ready to be given options and submitted.
            pub fn task(#(#names: impl ::mobula::IntoArg<#types>),*) -> ::mobula::Task<#returned> {
                let mut __args = ::mobula::Args::default();
                #(#names.into_arg(&mut __args);)*
                ::mobula::Task::new(module_path!(), __args)
            }

            /// Submits it from inside a running task.
            pub fn remote(#(#names: impl ::mobula::IntoArg<#types>),*) -> ::mobula::ObjectRef<#returned> {
                ::mobula::current().submit(task(#(#names),*))
            }

            #run
        }
    })
}

/// The value type, and whether the function returns a `Result` of it.
fn returned_type(output: &ReturnType) -> (proc_macro2::TokenStream, bool) {
    let ReturnType::Type(_, ty) = output else { return (quote!(()), false) };
    if let Type::Path(path) = ty.as_ref()
        && let Some(last) = path.path.segments.last()
        && last.ident == "Result"
        && let PathArguments::AngleBracketed(args) = &last.arguments
        && let Some(GenericArgument::Type(inner)) = args.args.first()
    {
        return (quote!(#inner), true);
    }
    (quote!(#ty), false)
}
